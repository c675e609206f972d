"""Measures how fast a run trains, how long it waits for data, and what its parts take."""

from __future__ import annotations

import time
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from utils.memory import peak_mb
from utils.stopwatch import Stopwatch

# On a GPU the wait is timed for one in so many batches.
EVERY = 10
_COUNTS = (
    *("images", "seconds", "_first_waits"),
    *("_later_batches", "_timed_waits", "_timed_batches"),
)


class Throughput(Callback):
    """Counts images and seconds of training steps; validation, pictures and readouts do not count.

    A GPU still computes when the host leaves a step, so the host does not wait for the loader only.
    On a GPU, therefore, the wait for the next batch is timed only after every tenth step, when the
    host has waited for the GPU; the other waits are assumed to be alike. For the same reason, only
    then is the time of readouts subtracted: elsewhere the first readout that needs a number waits
    for the step itself, which counts.

    Checkpoints carry what was counted, and the stopwatch's seconds: a resumed run goes on with
    those of the steps that are done, and with their peak memory, however the part before it ended.

    Args:
        stopwatch: counts the time of `readouts`, and of all other phases of the run.

    Attributes:
        images: of all processes.
        seconds: of this process, including the wait for data.
        peak_mb: peak memory of this process up to the end of the last epoch.
    """

    def __init__(self, stopwatch: Stopwatch | None = None) -> None:
        self._stopwatch = stopwatch or Stopwatch()
        self.images = 0
        self.seconds = 0.0
        self.peak_mb = 0.0
        self._first_waits = 0.0  # for the first batch of each epoch, unlike the others
        self._later_batches = 0
        self._timed_waits = 0.0
        self._timed_batches = 0
        self._arrived = self._ended = self._read_out = 0.0
        self._is_first = True
        self._phases: dict[str, float] | None = None  # at the first checkpoint of a step
        self._before: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """What was counted; the same for all checkpoints of a step, which may be one file."""
        if self._phases is None:
            self._phases = self._stopwatch.so_far()
        counted = {name: getattr(self, name) for name in _COUNTS}
        return counted | {"phases": self._phases, "peak_mb": self.peak_mb}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps it until training starts, as the test loads a checkpoint as well."""
        self._before = state_dict

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes on from what was counted before."""
        for name in _COUNTS if self._before else ():
            setattr(self, name, self._before[name])
        self._stopwatch.add(self._before.get("phases", {}))
        self.peak_mb = self._before.get("peak_mb", 0.0)
        self._read_out = self._stopwatch.total("readouts")

    @property
    def images_per_second(self) -> float:
        """Training images per second, including the wait for data."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def data_wait_share(self) -> float:
        """Share of the training time spent waiting for the loader."""
        if not self.seconds:
            return 0.0
        later = self._timed_waits * self._later_batches / max(1, self._timed_batches)
        return min(1.0, (self._first_waits + later) / self.seconds)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock: within an epoch, a resumed run begins no other."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, as waiting for the first batch counts."""
        _await(pl_module.device)
        self._since_read_out()
        self._is_first, self._ended = True, time.perf_counter()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Counts the wait for the batch."""
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
        """Counts the time and the images of the step."""
        if trainer.is_last_batch or _is_timed(batch_idx + 1, pl_module.device):
            _await(pl_module.device)
        read_out = self._since_read_out()
        self._ended = time.perf_counter()
        self.seconds += self._ended - self._arrived
        if pl_module.device.type != "cuda":
            self.seconds -= read_out
        self.images += len(batch) * trainer.world_size
        self._phases = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the peak memory."""
        self.peak_mb = max(self.peak_mb, peak_mb(pl_module.device))

    def _since_read_out(self) -> float:
        """Returns the seconds that readouts have taken since the last call."""
        before, self._read_out = self._read_out, self._stopwatch.total("readouts")
        return self._read_out - before


def _is_timed(batch_idx: int, device: torch.device) -> bool:
    return device.type != "cuda" or batch_idx % EVERY == 1


def _await(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
