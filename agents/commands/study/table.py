"""The table of a study: mean and standard deviation over seeds, beside what was published."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.commands.study.rows import Row
from agents.commands.study.runs import Study
from agents.protocols import judged_by
from config.command_line import as_command_line
from utils.run_folder import RunFolder
from utils.text import TRANSDUCTIVE, count, format_result, markdown

_LATEX = {letter: f"\\{letter}" for letter in "&%_#${}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
}


@dataclass(frozen=True)
class Line:
    """One row's results.

    Attributes:
        row: the row.
        runs: summaries of its finished runs.
    """

    row: Row
    runs: Sequence[Mapping[str, Any]]

    @property
    def transductive(self) -> bool:
        """Whether any of its runs is transductive."""
        return any(run.get("transductive") for run in self.runs)

    def values(self, metric: str) -> list[float]:
        """Returns a metric of every run that has it as a number."""
        found = (run.get(metric) for run in self.runs)
        return [float(value) for value in found if isinstance(value, int | float)]

    def mean(self, metric: str) -> float | None:
        """Returns the mean over seeds."""
        values = self.values(metric)
        return statistics.mean(values) if values else None

    def std(self, metric: str) -> float | None:
        """Returns the standard deviation over seeds (n - 1); None for fewer than two."""
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else None

    def difference(self, metric: str) -> float | None:
        """Returns mean - published."""
        mean, published = self.mean(metric), self.row.published.get(metric)
        return None if mean is None or published is None else mean - published


@dataclass(frozen=True)
class StudyTable:
    """A study's results, to be written in several formats.

    Attributes:
        study: the study.
        lines: of the rows that are shown.
        missing: runs that did not finish, and why.
    """

    study: Study
    lines: Sequence[Line]
    missing: Sequence[str]

    def heading(self) -> list[str]:
        """Returns what readers must know first: protocol, seeds, settings, warnings."""
        study = self.study
        words = [study.about] if study.about else []
        if study.protocol:
            words.append(f"Protocol: {study.protocol}")
        facts = {", ".join(judged_by(run)) for line in self.lines for run in line.runs} - {""}
        if facts:
            words.append(f"Judged by: {'; '.join(sorted(facts))}.")
        if len(facts) > 1:
            words.append("NOT ONE PROTOCOL: rows judged differently do not compare.")
        words.append(f"Mean ± standard deviation over {count(study.seeds, 'seed')}.")
        if study.overrides:
            words.append(f"Settings for all: {' '.join(as_command_line(study.overrides))}")
        if any(line.transductive for line in self.lines):
            words.append(f"* transductive: {TRANSDUCTIVE}.")
        if self.missing:
            words.append(f"NOT FINISHED: {', '.join(self.missing)}.")
        return words

    def cells(self) -> list[list[str]]:
        """Returns the head of the table and its lines as text."""
        metrics = self.study.metrics
        published = [k for k in metrics if any(k in line.row.published for line in self.lines)]
        noted = any(line.row.note for line in self.lines)
        head = ["", "runs"]
        for key, title in metrics.items():
            what = title if len(published) > 1 else ""
            more = [f"{what} published".strip(), f"{what} difference".strip()]
            head += [title, *(more if key in published else [])]
        cells = [[*head, *(["note"] if noted else [])]]
        for line in self.lines:
            row = [line.row.label + "*" * line.transductive]
            row.append(f"{len(line.runs)}/{self.study.seeds}")
            for key in metrics:
                row.append(_mean_and_std(line.mean(key), line.std(key)))
                if key in published:
                    row.append(format_result(line.row.published.get(key)))
                    row.append(_difference(line.difference(key)))
            cells.append([*row, *([line.row.note] if noted else [])])
        return cells

    def markdown(self) -> str:
        """Returns the table for a README."""
        head, *lines = self.cells()
        return "\n\n".join([f"# {self.study.title}", *self.heading(), markdown(head, lines)]) + "\n"

    def latex(self) -> str:
        """Returns a booktabs table for a paper."""
        head, *lines = [[_escaped(cell) for cell in row] for row in self.cells()]
        body = "\n".join(" & ".join(row) + r" \\" for row in lines)
        comments = [f"% {line}" for words in self.heading() for line in words.splitlines()]
        lines_of_tex = [
            *comments,
            r"\begin{table}",
            r"\centering",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            body,
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{_escaped(self.study.title)}}}",
            r"\end{table}",
        ]
        return "\n".join(lines_of_tex) + "\n"

    def csv(self) -> str:
        """Returns the table as CSV, with all digits."""
        head = ["row", "label", "runs", "transductive"]
        for key in self.study.metrics:
            head += [f"{key} {what}" for what in ("mean", "std", "published", "difference")]
        rows: list[list[Any]] = [head]
        for line in self.lines:
            row: list[Any] = [line.row.name, line.row.label, len(line.runs), line.transductive]
            for key in self.study.metrics:
                row += [line.mean(key), line.std(key)]
                row += [line.row.published.get(key), line.difference(key)]
            rows.append(row)
        return _csv(rows)

    def runs_csv(self) -> str:
        """Returns the numbers of every run, including rows that are not shown."""
        summaries = [self.study.folder_of(run.name).read_summary() for run in self.study.runs]
        numbers = sorted({k for s in summaries for k, v in s.items() if isinstance(v, int | float)})
        rows: list[list[Any]] = [["run", "row", "seed", "status", *numbers]]
        for run, summary in zip(self.study.runs, summaries, strict=True):
            status = summary.get("status", "missing")
            rows.append([run.name, run.row, run.seed, status, *map(summary.get, numbers)])
        return _csv(rows)


def study_table(study: Study) -> StudyTable:
    """Collects the results of a study so far."""
    lines, missing = [], []
    for row in study.rows:
        runs = [(run, study.folder_of(run.name)) for run in study.of(row)]
        summaries = [folder.read_summary() for _, folder in runs if folder.finished]
        if row.shown:
            lines.append(Line(row, summaries))
        for run, folder in runs:
            if not folder.finished:
                log = study.folder / "logs" / f"{run.name}.log"
                missing.append(f"{run.name} ({last_reason(folder, log)})")
    return StudyTable(study, lines, missing)


def last_reason(folder: RunFolder, log: Path) -> str:
    """Says why a run did not finish, from its summary or the end of its log."""
    summary = folder.read_summary()
    if summary.get("reason"):
        return f"{summary.get('status')}: {summary['reason']}"
    lines = log.read_text("utf-8", errors="replace").splitlines() if log.exists() else []
    errors = [line for line in lines if "rror" in line]
    if errors:
        return errors[-1].strip()
    return f"{summary['status']}" if "status" in summary else "see its log" if lines else "not run"


def _difference(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _mean_and_std(mean: float | None, std: float | None) -> str:
    if mean is None:
        return "–"
    digits = 3 if abs(mean) < 10 else 1
    tail = "" if std is None else f" ± {std:.{digits}f}"
    return f"{mean:.{digits}f}{tail}"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
