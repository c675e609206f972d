"""How fast a run trains, and how long it waits for data."""

from __future__ import annotations

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Counts images and seconds of training steps; validation and pictures do not count.

    Images are those of all processes, seconds those of this one.
    """

    def __init__(self) -> None:
        self.images = 0
        self.step_seconds = 0.0
        self.wait_seconds = 0.0
        self._mark: float | None = None
        self._started = 0.0

    @property
    def images_per_second(self) -> float:
        """Training images per second, waiting for data included."""
        seconds = self.step_seconds + self.wait_seconds
        return self.images / seconds if seconds else 0.0

    @property
    def data_wait_share(self) -> float:
        """Share of the training time spent waiting for the loader."""
        seconds = self.step_seconds + self.wait_seconds
        return self.wait_seconds / seconds if seconds else 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Waiting for the first batch counts."""
        self._mark = time.perf_counter()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is here."""
        self._started = time.perf_counter()
        if self._mark is not None:
            self.wait_seconds += self._started - self._mark

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """The step is done."""
        self._mark = time.perf_counter()
        self.step_seconds += self._mark - self._started
        self.images += len(batch) * trainer.world_size
