"""The parts of a run that observe it without steering it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger

from callbacks.guard import Guard
from callbacks.report import Report
from callbacks.throughput import Throughput
from callbacks.unreadable_images import UnreadableImages
from utils.logging import own_log
from utils.metrics_file import last_values


@dataclass(frozen=True)
class Observers:
    """All that observes a run; each part reports in its own way at the end (`agents/closing.py`).

    Args:
        guard: wraps those that may fail.
        callbacks: those that the settings switch on.
        goals: names of the numbers that matter, each with `max` or `min`, whichever is best.
        reports: report.html, if wanted.
        loggers: of this process; only the leading one has any.
        throughput: of the training steps.
        unreadable: images that could not be read.
    """

    guard: Guard
    callbacks: Sequence[pl.Callback]
    goals: Mapping[str, str]
    reports: Sequence[Report]
    loggers: list[Logger]
    throughput: Throughput
    unreadable: UnreadableImages = field(default_factory=UnreadableImages)

    def flush(self) -> None:
        """Writes what has been logged, so that a checkpoint is never ahead of it."""
        if log := own_log(self.loggers):
            log.flush_for_checkpoint()

    @property
    def numbers(self) -> dict[str, float]:
        """The last value of each scalar, sorted by name, over all parts of a resumed run.

        Lightning only knows those of the current part.
        """
        log = own_log(self.loggers)
        found = last_values(log.metrics.rows) if log else {}
        return {name: value for name, value in sorted(found.items()) if "/" in name}
