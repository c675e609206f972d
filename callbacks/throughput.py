"""How fast a run trains, and how long it waits for data."""

from __future__ import annotations

import time
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from utils.stopwatch import Stopwatch

# On a GPU, before one of so many batches.
EVERY = 10


class Throughput(Callback):
    """Counts images and seconds of training steps; validation, pictures and readouts do not count.

    A GPU works on after its host has left a step, and what the host then waits for is not the
    loader alone. So on a GPU it is only after every tenth step, when the GPU has been awaited, that
    the wait for the next batch is timed; the other waits are taken to be like these. For the same
    reason only what readouts take then is known to be theirs: elsewhere, what the first of them to
    ask for a number waits for is the step, and counts.

    Args:
        stopwatch: that counts the time of `readouts`.

    Attributes:
        images: those of all processes.
        seconds: of this process, waiting for data included.
    """

    def __init__(self, stopwatch: Stopwatch | None = None) -> None:
        self._stopwatch = stopwatch or Stopwatch()
        self.images = 0
        self.seconds = 0.0
        self._first_waits = 0.0  # for the first batches of epochs, which are unlike the others
        self._later_batches = 0
        self._timed_waits = 0.0
        self._timed_batches = 0
        self._arrived = self._ended = self._read_out = 0.0
        self._is_first = True

    @property
    def images_per_second(self) -> float:
        """Training images per second, waiting for data included."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def data_wait_share(self) -> float:
        """Share of the training time spent waiting for the loader."""
        if not self.seconds:
            return 0.0
        later = self._timed_waits * self._later_batches / max(1, self._timed_batches)
        return min(1.0, (self._first_waits + later) / self.seconds)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Waiting for the first batch counts."""
        _await(pl_module.device)
        self._since_read_out()
        self._is_first, self._ended = True, time.perf_counter()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is here."""
        self._arrived = time.perf_counter()
        timed = self._is_first or _is_timed(batch_idx, pl_module.device)
        read_out = self._since_read_out()
        waited = self._arrived - self._ended - (read_out if timed else 0.0)
        self.seconds += waited
        if self._is_first:
            self._first_waits += waited
            self._is_first = False
            return
        self._later_batches += 1
        if timed:
            self._timed_waits += waited
            self._timed_batches += 1

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """The step is done."""
        if trainer.is_last_batch or _is_timed(batch_idx + 1, pl_module.device):
            _await(pl_module.device)
        read_out = self._since_read_out()
        self._ended = time.perf_counter()
        self.seconds += self._ended - self._arrived
        if pl_module.device.type != "cuda":
            self.seconds -= read_out
        self.images += len(batch) * trainer.world_size

    def _since_read_out(self) -> float:
        """Returns what readouts have taken since this was asked."""
        before, self._read_out = self._read_out, self._stopwatch.seconds["readouts"]
        return self._read_out - before


def _is_timed(batch_idx: int, device: torch.device) -> bool:
    return device.type != "cuda" or batch_idx % EVERY == 1


def _await(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
