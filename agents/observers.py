"""What looks at a run without steering it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger

from callbacks.guard import Guard
from callbacks.report import Report
from callbacks.throughput import Throughput
from callbacks.unreadable_images import UnreadableImages
from utils.logging import RunFolderLogger
from utils.metrics_file import last_values


@dataclass(frozen=True)
class Observers:
    """All that looks at a run; each reports in its own way at the end (`agents/closing.py`).

    Args:
        guard: around those that may fail.
        callbacks: that the settings switch on.
        goals: the numbers that matter, each with `max` or `min`, whichever is best.
        reports: the page, where it is wanted.
        loggers: of the process; one that does not lead has none.
        throughput: of its training steps.
        unreadable: images.
    """

    guard: Guard
    callbacks: Sequence[pl.Callback]
    goals: Mapping[str, str]
    reports: Sequence[Report]
    loggers: list[Logger]
    throughput: Throughput
    unreadable: UnreadableImages = field(default_factory=UnreadableImages)

    @property
    def numbers(self) -> dict[str, float]:
        """The last value of each scalar, sorted by name, of all parts of the run.

        Not what Lightning knows, which is of this part alone.
        """
        rows = [log.metrics.rows for log in self.loggers if isinstance(log, RunFolderLogger)]
        found = [item for each in rows for item in last_values(each).items()]
        return {name: value for name, value in sorted(found) if "/" in name}
