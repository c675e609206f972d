"""Runs side by side: the settings in which they differ, and their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from config.convert import read_yaml
from utils.run_folder import RunFolder
from utils.trees import flat


def compare(folders: Sequence[RunFolder]) -> str:
    """Returns a Markdown table, one column a run.

    Settings are listed where the runs differ, results where any run has them. A transductive run is
    marked with a star.
    """
    settings = [flat(read_yaml(folder.hparams)) for folder in folders]
    results = [folder.read_summary() for folder in folders]
    stars = ["*" if result.get("transductive") else "" for result in results]
    rows = [["", *(folder.name + star for folder, star in zip(folders, stars, strict=True))]]
    rows.append(["---"] * len(rows[0]))
    for name in _keys(settings):
        values = [setting.get(name) for setting in settings]
        if any(value != values[0] for value in values):
            rows.append([name, *map(str, values)])
    for name in _keys(results):
        values = [result.get(name) for result in results]
        if not isinstance(values[0], list):
            rows.append([f"**{name}**", *map(_shown, values)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if any(stars):
        lines.append("\n\\* transductive: training saw evaluation images.")
    return "\n".join(lines)


def _keys(dicts: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for each in dicts for key in each))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)
