"""Writes the output of a study: tables, figures, one page, and a wandb run of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.commands.compare import draw_curves
from agents.commands.study.figures import study_figure
from agents.commands.study.runs import Run, Study
from agents.commands.study.table import StudyTable, study_table
from agents.wandb_start import log_table
from config.hparams import Hparams
from config.settings_tree import update
from utils.console import console
from utils.figures import save
from utils.files import write_atomically
from utils.nested import nested
from utils.page import fit, picture_uri, render
from utils.run_folder import RunFolder
from utils.text import command_line


def write_table(study: Study) -> StudyTable:
    """Writes table.md, table.csv, table.tex and runs.csv from the results so far."""
    table = study_table(study)
    contents = {
        "table.md": table.markdown(),
        "table.csv": table.csv(),
        "table.tex": table.latex(),
        "runs.csv": table.runs_csv(),
    }
    for name, content in contents.items():
        write_atomically(study.folder / name, content)
    return table


def write_output(study: Study) -> list[str]:
    """Writes everything.

    Returns:
        What to print: the table, and where the rest is.
    """
    table = write_table(study)
    pictures = _draw(study)
    report = study.folder / "report.html"
    write_atomically(report, _page(study, table, pictures))
    _log_to_wandb(study, table, pictures)
    return ["", table.markdown(), f"report       {report}", f"tables       {study.folder}/table.*"]


def _draw(study: Study) -> dict[str, Path]:
    """Draws the figures; returns files by title."""
    drawn: dict[str, Path] = {}
    folder = study.folder / "figures"
    folder.mkdir(exist_ok=True)
    for number, figure in enumerate(study.figures, start=1):
        picture = study_figure(study, figure)
        if picture is not None:
            drawn[figure.title] = folder / f"{number:02d}-{figure.picture}.png"
            # Square pictures leave margins that the layout cannot remove.
            save(picture, drawn[figure.title], bbox_inches="tight", pad_inches=0.1)
    shown = [row for row in study.rows if row.shown]
    firsts = {row.label: study.folder_of(study.of(row)[0].name) for row in shown}
    curves = draw_curves({k: folder for k, folder in firsts.items() if folder.finished})
    if curves is not None:
        drawn["Learning curves, first seed of every row"] = folder / "curves.png"
        save(curves, folder / "curves.png")
    return drawn


def _page(study: Study, table: StudyTable, pictures: dict[str, Path]) -> str:
    head, *lines = table.cells()
    runs = [_run_facts(study, run) for run in study.runs]

    def draw(width: int | None) -> str:
        return render(
            "study.html",
            title=study.title,
            picture_width=width,
            words=table.heading(),
            numbers=_numbers(study, runs),
            command=command_line("python", "main.py", *study.words),
            head=head,
            lines=lines,
            pictures={title: picture_uri(file, width) for title, file in pictures.items()},
            runs=runs,
        )

    return fit(draw)


def _numbers(study: Study, runs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Returns the numbers at the top of the page: how much has finished, and what it took."""
    finished = sum(run["state"] == "finished" for run in runs)
    hours = sum(run["seconds"] or 0 for run in runs) / 3600
    found = {
        "runs finished": f"{finished} of {len(runs)}",
        "rows": str(sum(row.shown for row in study.rows)),
        "seeds of each": str(study.seeds),
        "hours of computing": f"{hours:.1f}",
    }
    return [{"name": name, "value": value, "before": ""} for name, value in found.items()]


def _run_facts(study: Study, run: Run) -> dict[str, Any]:
    folder = study.folder_of(run.name)
    summary = folder.read_summary()
    return {
        "name": run.name,
        "has_page": folder.report.exists(),
        "state": summary.get("status", "not run"),
        "seconds": summary.get("wall_seconds"),
        "memory_mb": summary.get("peak_memory_mb"),
        "device": folder.read_environment().get("device", ""),
    }


def _log_to_wandb(study: Study, table: StudyTable, pictures: dict[str, Path]) -> None:
    chosen = {p: v for p, v in study.runs[0].settings.items() if p.startswith("logger.")}
    settings = update(Hparams(), nested(chosen), study.name).logger
    head, *lines = table.cells()
    about = "\n".join(table.heading())
    try:
        log_table(settings, RunFolder(study.folder), ["row", *head[1:]], lines, pictures, about)
    except Exception as error:  # whatever it is, the study is done and its table saved
        console.warning("warning: the table is not on wandb: %s", error)
