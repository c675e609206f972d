"""Compares runs: the settings in which they differ, their results, their curves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from callbacks.learning_curves import is_curve, marker, rank, scale
from config.lookup import read_settings
from utils import figures
from utils.files import make_folder, write_atomically
from utils.metrics_file import read_metrics
from utils.nested import flat
from utils.run_folder import RunFolder
from utils.text import TRANSDUCTIVE, format_result, markdown

_MOST_PANELS = 9
_LONGEST_NAME = 100  # bytes of a folder's name, before the digest that makes it unique
_FIRST = ("val/loss", "train/loss", "val/miou", "val/accuracy")


def write_comparison(folders: Sequence[RunFolder], runs_dir: str) -> str:
    """Writes table.md and curves.png below `comparisons/`, in a folder for these runs only.

    Returns:
        The table, and the paths of both files.
    """
    table, names = compare(folders), labels(folders)
    place = Path(runs_dir) / "comparisons" / _called(folders, names)
    make_folder(place)
    write_atomically(place / "table.md", table + "\n")
    lines = [table, "", f"table   {place / 'table.md'}"]
    curves = draw_curves(dict(zip(names, folders, strict=True)))
    if curves is not None:
        figures.save(curves, place / "curves.png")
        lines.append(f"curves  {place / 'curves.png'}")
    return "\n".join(lines)


def _called(folders: Sequence[RunFolder], names: Sequence[str]) -> str:
    """Returns the name of a comparison: the names of its runs, in any order, and a digest.

    The digest is needed because long names are cut, and runs elsewhere may have the same names.
    """
    runs = dict(zip(map(_path, folders), names, strict=True))
    ordered = sorted(runs, key=lambda path: (runs[path], path))
    words = "-vs-".join(runs[path] for path in ordered).replace("/", "-")
    begins = words.encode(errors="replace")[:_LONGEST_NAME].decode(errors="ignore")
    digest = hashlib.sha256("\0".join(map(str, ordered)).encode(errors="surrogateescape"))
    return f"{begins}-{digest.hexdigest()[:8]}"


def _path(folder: RunFolder) -> Path:
    return folder.path.parent.resolve() / folder.name


def labels(folders: Sequence[RunFolder]) -> list[str]:
    """Returns a label for each run: the shortest end of its path that no other run shares.

    Mostly its name; `mine/dino` and `yours/dino` if two runs are called `dino`.
    """
    paths = list(map(_path, folders))
    return [_label(path, [other for other in paths if other != path]) for path in paths]


def _label(path: Path, others: Sequence[Path]) -> str:
    ends = (path.parts[-length:] for length in range(1, len(path.parts) + 1))
    own = next(end for end in ends if all(o.parts[-len(end) :] != end for o in others))
    return Path(*own).as_posix()


def compare(folders: Sequence[RunFolder]) -> str:
    """Returns a Markdown table with one column per run.

    It lists the settings in which the runs differ, and all results that any run has. A star marks
    transductive runs.
    """
    settings = [flat(read_settings(folder.path)) for folder in folders]
    results = [folder.read_summary() for folder in folders]
    stars = ["*" if result.get("transductive") else "" for result in results]
    head = ["", *(name + star for name, star in zip(labels(folders), stars, strict=True))]
    rows = []
    for name in _keys(settings):
        values = [setting.get(name) for setting in settings]
        if any(value != values[0] for value in values):
            rows.append([name, *map(str, values)])
    for name in _keys(results):
        values = [result.get(name) for result in results]
        if not any(isinstance(value, list | dict) for value in values):
            rows.append([f"**{name}**", *map(format_result, values)])
    lines = [markdown(head, rows)]
    if any(stars):
        lines.append(f"\n\\* transductive: {TRANSDUCTIVE}.")
    return "\n".join(lines)


def draw_curves(runs: Mapping[str, RunFolder]) -> Figure | None:
    """Draws one panel, with all runs, per scalar that at least one run logged more than once.

    Args:
        runs: by label.

    Returns:
        None when there is nothing to draw.
    """
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for label, folder in runs.items():
        for step, row in sorted(read_metrics(folder.metrics).items()):
            for name, value in row.items():
                if is_curve(name):
                    curves.setdefault(name, {}).setdefault(label, []).append((step, value))
    drawn = [name for name, lines in curves.items() if max(map(len, lines.values())) > 1]
    drawn.sort(key=lambda name: _rank(name, len(curves[name])))
    drawn = drawn[:_MOST_PANELS]
    if not drawn:
        return None
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    figure, axes = figures.grid(rows, columns, cell=(3.8, 2.6), title="Learning curves")
    colours = {label: figures.HEADS[i % len(figures.HEADS)] for i, label in enumerate(runs)}
    for axis in axes.flat[len(drawn) :]:
        axis.set_visible(False)
    handles: dict[str, Line2D] = {}
    for axis, name in zip(axes.flat[: len(drawn)], drawn, strict=True):
        for label, points in curves[name].items():
            (handles[label],) = axis.plot(
                *zip(*points, strict=True),
                color=colours[label],
                linewidth=1.2,
                marker=marker(points),
                markersize=3,
            )
        scale(axis, name.partition("/")[2])
        axis.set(title=name, xlabel="step")
    shown = [label for label in runs if label in handles]
    lines, names = [handles[label] for label in shown], list(map(figures.name, shown))
    figure.legend(lines, names, loc="outside lower center", ncols=4, fontsize=7)
    return figure


def _rank(name: str, runs: int) -> tuple[int, int, int, str]:
    """Sorts panels as for a single run; within a kind, those that most runs share come first."""
    split, _, panel = name.partition("/")
    first = _FIRST.index(name) if name in _FIRST else len(_FIRST)
    return rank(panel, [split])[0], first, -runs, name


def _keys(dicts: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for each in dicts for key in each))
