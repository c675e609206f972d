"""The live table of a study: what every run is doing, and how long the rest will take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text

from agents.commands.study.runs import Run, Study
from config.yaml_files import read_yaml
from utils.metrics_file import read_metrics
from utils.nested import flat
from utils.run_folder import RunFolder
from utils.text import count, format_result

_STYLES = {
    "finished": "green",
    "failed": "red",
    "interrupted": "yellow",
    "running": "bold cyan",
    "elsewhere": "cyan",
}
_MOST_ROWS = 40


class Board:
    """Shows a study while it runs; a context manager.

    A terminal gets a live table; elsewhere there is a line per event, and the table at the end.
    """

    def __init__(self, study: Study, console: Console | None = None) -> None:
        self.study = study
        self.states = dict.fromkeys((run.name for run in study.runs), "waiting")
        self.running: tuple[Run, float] | None = None
        self.summaries: dict[str, dict[str, Any]] = {}  # of finished runs
        self._look()
        self.live = Live(console=console or Console(), auto_refresh=False)

    def __enter__(self) -> Board:
        """Starts showing."""
        self.live.__enter__()
        self.show()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves the last state standing."""
        self.show()
        self.live.__exit__(kind, value, trace)

    def tell(self, line: str) -> None:
        """Prints a line that stays."""
        self.live.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def started(self, run: Run, word: str) -> None:
        """Notes that a run has started."""
        self.states[run.name], self.running = "running", (run, time.monotonic())
        done = sum(state in ("finished", "failed") for state in self.states.values())
        self.tell(f"{run.name}: {word} ({done + 1} of {len(self.states)})")

    def ended(self, run: Run, state: str) -> None:
        """Notes that a run has ended."""
        self.states[run.name], self.running = state, None
        if state == "finished":
            found = _results(self.study.metrics, self.study.folder_of(run.name))
            self.tell(f"{run.name}: finished{', ' if found else ''}{', '.join(found)}")
        self.show()

    def interrupted(self) -> None:
        """Notes that the current run was stopped."""
        if self.running:
            self.ended(self.running[0], "interrupted")

    def show(self, elsewhere: Sequence[str] = ()) -> None:
        """Redraws the table.

        Args:
            elsewhere: runs that another process trains.
        """
        self._look(elsewhere)
        self.live.update(self._table(), refresh=self.live.console.is_terminal)

    def _look(self, elsewhere: Sequence[str] = ()) -> None:
        for name, state in self.states.items():
            if name in elsewhere:
                self.states[name] = "elsewhere"
            elif state not in ("failed", "running", "interrupted"):
                if name not in self.summaries and self.study.folder_of(name).finished:
                    self.summaries[name] = self.study.folder_of(name).read_summary()
                self.states[name] = "finished" if name in self.summaries else "waiting"

    def _over(self) -> bool:
        return all(state in ("finished", "failed") for state in self.states.values())

    def _table(self) -> Group:
        # Text, because names and titles may look like markup.
        columns = ("run", "state", "done", "time", *self.study.metrics.values())
        table = RichTable(*map(Column, map(Text, columns)), title=Text(self.study.title))
        progress = self._progress()
        finished = [name for name, state in self.states.items() if state == "finished"]
        hidden = {*finished[: max(0, len(self.states) - _MOST_ROWS)]}
        for name, state in self.states.items():
            if name in hidden:
                continue
            summary = self.summaries.get(name, {})
            seconds = summary.get("wall_seconds")
            if state == "running" and self.running:
                seconds = time.monotonic() - self.running[1]
            done = f"{progress:.0%}" if state == "running" and progress is not None else ""
            values = [format_result(summary.get(key), missing="") for key in self.study.metrics]
            table.add_row(
                Text(name), Text(state, _STYLES.get(state, "dim")), done, _clock(seconds), *values
            )
        lines = [f"Not shown: {count(len(hidden), 'finished run')}."] if hidden else []
        left = self.seconds_left(progress)
        lines += [f"About {_clock(left)} left." if left else "Time left: known after a run."]
        return Group(table, *([] if self._over() else map(Text, lines)))

    def _progress(self) -> float | None:
        if self.running is None:
            return None
        run = self.running[0]
        return share_done(self.study.folder_of(run.name).metrics, run.settings)

    def seconds_left(self, progress: float | None) -> float | None:
        """Estimates the remaining time from finished runs; None while nothing is known.

        A run is expected to take the mean time of its row; else that of its task, scaled by its
        length; else that of all runs.
        """
        known: list[tuple[Run, float]] = []
        for run in self.study.runs:
            if seconds := self.summaries.get(run.name, {}).get("wall_seconds"):
                known.append((run, float(seconds)))
        left = 0.0
        if self.running and progress:
            run, began = self.running
            spent = time.monotonic() - began
            known.append((run, spent / progress))
            left += spent / progress - spent
        if not known:
            return None
        for run in self.study.runs:
            unknown = self.running and run.name == self.running[0].name and not progress
            if self.states[run.name] in ("waiting", "elsewhere", "interrupted") or unknown:
                left += _expected(run, known)
        return left


def _expected(run: Run, known: Sequence[tuple[Run, float]]) -> float:
    of_row = [seconds for other, seconds in known if other.row == run.row]
    length = _length(run.settings)
    of_task = [
        seconds * length / others
        for other, seconds in known
        if other.settings["task"] == run.settings["task"]
        and length
        and (others := _length(other.settings))
    ]
    return statistics.mean(of_row or of_task or [seconds for _, seconds in known])


def _length(settings: Mapping[str, Any]) -> int | None:
    """Returns steps or epochs; None if a run has yet to choose them, or trains nothing."""
    length = settings.get("trainer.max_steps") or settings.get("trainer.max_epochs", "auto")
    return None if length == "auto" else int(length)


def share_done(metrics: Path, settings: Mapping[str, Any]) -> float | None:
    """Returns the share of a run's training in its metrics.csv; None before its first line.

    The length is read from hparams.yaml beside it, as the run may have chosen it itself.
    """
    if not metrics.exists():
        return None
    last = _last_step(metrics, metrics.stat().st_mtime_ns)
    if last is None:
        return None
    step, epoch = last
    done = step + 1 if settings.get("trainer.max_steps") else epoch
    chosen = flat(read_yaml(metrics.with_name("hparams.yaml")))
    length = _length(chosen)
    return min(1.0, done / length) if length else None


@lru_cache(maxsize=1)  # the file changes twice a minute but is read every second
def _last_step(metrics: Path, changed: int) -> tuple[int, float] | None:
    rows = [(step, row["epoch"]) for step, row in read_metrics(metrics).items() if "epoch" in row]
    return rows[-1] if rows else None


def _results(metrics: Mapping[str, str], folder: RunFolder) -> list[str]:
    summary = folder.read_summary()
    return [
        f"{title} {format_result(summary[key])}" for key, title in metrics.items() if key in summary
    ]


def _clock(seconds: float | None) -> str:
    return "" if seconds is None else str(timedelta(seconds=round(seconds)))
