"""A study and its runs: what each computes, and where."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.commands.study.rows import Figure, Row
from config.base_settings import OF_THE_MACHINE
from config.command_line import MAIN, as_command_line
from config.hparams import Hparams
from utils.run_folder import RunFolder
from utils.text import command_line

# Prefixes of settings that do not change what a run computes; its images may have been moved.
BESIDE_WHAT = (*OF_THE_MACHINE, "run.", "logger.", "callbacks.", "data.root", "probe.data.root")


@dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
        name: of its folder inside the study's.
        row: name of its row.
        seed: of the run.
        needs: names of the runs that must finish before it.
        words: its command line after `main.py`.
        machine_words: the part of them that says where and how it is computed.
        settings: all that it reads, by dotted path.
    """

    name: str
    row: str
    seed: int
    needs: tuple[str, ...]
    words: tuple[str, ...]
    machine_words: tuple[str, ...]
    settings: Mapping[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that decide what it computes, wherever it runs."""
        return {
            path: value for path, value in self.settings.items() if not path.startswith(BESIDE_WHAT)
        }


@dataclass(frozen=True)
class Study:
    """A table and its figures.

    Attributes:
        name: of the file.
        title, about, protocol: for its head.
        seeds: number of seeds.
        metrics: column titles by key of summary.json; a single `published:` is of the first.
        rows: in the order of the table, then those only needed by others.
        figures: to draw.
        runs: in the order to run them.
        folder: contains everything.
        overrides: options for all rows from the command line, by dotted path.
        asked: its name or file as given.
    """

    name: str
    title: str
    about: str
    protocol: str
    seeds: int
    metrics: Mapping[str, str]
    rows: tuple[Row, ...]
    figures: tuple[Figure, ...]
    runs: tuple[Run, ...]
    folder: Path
    overrides: Mapping[str, Sequence[str]]
    asked: str

    @property
    def words(self) -> list[str]:
        """Its command line after `main.py`."""
        words = ["--study", self.asked, "--seeds", str(self.seeds)]
        if (runs_dir := str(self.folder.parent)) != Hparams().run.dir:
            words += ["--run.dir", runs_dir]
        return [*words, *as_command_line(self.overrides)]

    def of(self, row: Row) -> list[Run]:
        """Returns the runs of a row."""
        return [run for run in self.runs if run.row == row.name]

    def folder_of(self, name: str) -> RunFolder:
        """Returns the folder of the run of this name."""
        return RunFolder(self.folder / name)

    def command(self, run: Run) -> list[str]:
        """Returns the command that starts or resumes a run."""
        folder = self.folder_of(run.name)
        if not folder.has_checkpoint:
            return [sys.executable, str(MAIN), *run.words]
        resume = ["--run.dir", str(self.folder), "--run.resume", run.name]
        return [sys.executable, str(MAIN), *resume, *run.machine_words]

    def commands_left(self) -> Iterator[str]:
        """Yields the command of every run that has not finished.

        A comment names the runs that must finish before.
        """
        for run in self.runs:
            if not self.folder_of(run.name).finished:
                needs = f"  # after {', '.join(run.needs)}" if run.needs else ""
                yield command_line(*self.command(run)) + needs
