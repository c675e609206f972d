"""Reads the rows and figures of a study file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from config.errors import ConfigError, shown, suggestion
from config.lookup import find_experiment, known_experiments, read_experiment
from config.settings_tree import unfolded
from utils.nested import flat

# Functions that draw figures, by name: drawing needs torch, and reading a study does not.
FIGURES = {
    "matrices": "agents.commands.study.figures:matrices",
    "attention": "agents.commands.study.figures:attention",
    "predictions": "agents.commands.study.figures:predictions",
    "receptive_fields": "agents.commands.study.figures:receptive_fields",
    "learning": "agents.commands.study.learning:learning",
}
TEXT, LINES = (str, int, float), (Mapping,)
_WORDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    Mapping: "`name: value` lines",
}
_LARGEST = 1e30  # number that a table shows
_ROW_KEYS: dict[str, tuple[type, ...]] = {
    "name": TEXT,
    "label": TEXT,
    "experiment": TEXT,
    "settings": LINES,
    "published": (Mapping, int, float),
    "note": TEXT,
    "shown": (bool,),
}
_FIGURE_KEYS: dict[str, tuple[type, ...]] = {
    "picture": TEXT,
    "title": TEXT,
    "rows": (list, Mapping),
}


@dataclass(frozen=True)
class Row:
    """One line of a table: the same settings with several seeds.

    Attributes:
        name: of its runs, which append `-s` and the seed.
        label: in tables and figures.
        experiment: gives the first settings; None: `config/hparams.py` alone.
        settings: by dotted path, override those of the experiment.
        published: numbers in print, by metric.
        note: what to know when comparing with it.
        shown: False if only other rows need it.
    """

    name: str
    label: str
    experiment: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    shown: bool = True


@dataclass(frozen=True)
class Figure:
    """A figure of a study: pictures of some rows side by side, or their curves.

    Attributes:
        picture: one of `FIGURES`.
        title: of the figure.
        rows: labels by the name of the row.
    """

    picture: str
    title: str
    rows: Mapping[str, str]


def read_row(entry: Any, content: Mapping[str, Any], file: Path) -> Row:
    """Reads one entry of `rows`: an experiment's name, or a mapping.

    Raises:
        ConfigError: no such key or experiment, or neither an experiment nor a name.
    """
    if isinstance(entry, str):
        entry = {"experiment": entry}
    entry = check_keys(entry, _ROW_KEYS, f"{file}, a row")
    name = str(entry.get("name") or Path(str(entry.get("experiment", ""))).stem)
    if not name:
        raise ConfigError("A row of a study needs `experiment:` or `name:`.")
    if not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(f"{file}: row {name!r} needs a name of letters, digits, - and _.")
    experiment = entry.get("experiment")
    if experiment is not None:
        find_experiment(str(experiment))
    published = entry.get("published", {})
    if not isinstance(published, Mapping):
        metrics = list(content.get("metrics") or {})
        if not metrics:
            raise ConfigError(f"{file}, row {name}: `published:` needs `metrics:` of the study.")
        published = {metrics[0]: published}
    for key, value in published.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) < _LARGEST:  # nor nan
            raise ConfigError(f"{file}, row {name}: published {key} {shown(value)} is no number.")
    return Row(
        name=name,
        label=str(entry.get("label", name)),
        experiment=None if experiment is None else str(experiment),
        settings=flat(unfolded(entry.get("settings") or {}, f"{file}, row {name}")),
        published={str(key): float(value) for key, value in published.items()},
        note=str(entry.get("note", "")),
        shown=bool(entry.get("shown", True)),
    )


def experiment_settings(row: Row) -> dict[str, Any]:
    """Returns the settings of a row's experiment by dotted path."""
    return flat(read_experiment(row.experiment)) if row.experiment else {}


def needed(row: Row) -> Iterator[tuple[str, str]]:
    """Yields the paths of settings that are `run:NAME`, with the names."""
    for path, value in {**experiment_settings(row), **row.settings}.items():
        if str(value).startswith("run:"):
            yield path, str(value).removeprefix("run:")


def with_needed(rows: list[Row], file: Path) -> list[Row]:
    """Adds rows for experiments that are no rows, but whose runs other rows start from.

    Raises:
        ConfigError: a row starts from a run that is neither a row nor an experiment.
    """
    every = {row.name: row for row in rows}
    waiting = list(rows)
    while waiting:
        row = waiting.pop()
        for path, name in needed(row):
            if name in every or Path(name).is_dir():
                continue
            known = [*every, *known_experiments()]
            if name not in known:
                raise ConfigError(
                    f"{file}, row {row.name}: {path} run:{name}: the study has no row of this "
                    f"name, and there is no such experiment.{suggestion(name, known)}"
                )
            every[name] = Row(name, name, experiment=name, shown=False)
            waiting.append(every[name])
    return list(every.values())


def in_order(rows: list[Row], file: Path) -> list[Row]:
    """Sorts rows so that each comes after those it needs.

    Raises:
        ConfigError: some need each other.
    """
    by_name = {row.name: row for row in rows}
    graph = {row.name: [name for _, name in needed(row) if name in by_name] for row in rows}
    try:
        return [by_name[name] for name in TopologicalSorter(graph).static_order()]
    except CycleError as error:
        circle = " needs ".join(reversed(error.args[1]))
        raise ConfigError(f"{file}: {circle}: rows that need each other can never run.") from error


def read_figure(entry: Any, rows: Sequence[Row], file: Path) -> Figure:
    """Reads one entry of `figures`.

    Raises:
        ConfigError: no such picture or row.
    """
    entry = check_keys(entry, _FIGURE_KEYS, f"{file}, a figure")
    labels = {row.name: row.label for row in rows}
    given = entry.get("rows") or labels
    if not isinstance(given, Mapping):
        given = dict.fromkeys(map(str, given))
    chosen = {}
    for key, label in given.items():
        name = str(key)
        if name not in labels:
            near = suggestion(name, list(labels))
            raise ConfigError(
                f"{file}: a figure shows row {shown(name)}, which is not there.{near}"
            )
        chosen[name] = labels[name] if label in (None, "") else str(label)
    picture = str(entry.get("picture"))
    if picture not in FIGURES:
        raise ConfigError(
            f"{file}: picture {shown(picture)}: expected one of {', '.join(FIGURES)}."
        )
    return Figure(picture, str(entry.get("title", picture)), chosen)


def check_keys(entry: Any, known: Mapping[str, tuple[type, ...]], where: str) -> dict[str, Any]:
    """Checks the keys of a mapping, and the types of its values.

    Returns:
        The mapping without nulls, which count as missing.

    Raises:
        ConfigError: it is no mapping, or has other keys or types; begins with `where`.
    """
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: expected `name: value` lines, got {shown(entry)}.")
    for key, value in entry.items():
        if key not in known:
            raise ConfigError(
                f"{where}: there is no {key!r}.{suggestion(str(key), list(known))} "
                f"Known: {', '.join(known)}."
            )
        if value is not None and not isinstance(value, known[key]):
            words = " or ".join(_WORDS[kind] for kind in known[key])
            raise ConfigError(f"{where}: {key} {shown(value)}: expected {words}.")
    return {key: value for key, value in entry.items() if value is not None}
