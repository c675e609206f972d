"""Measures speed and memory of training steps on random images, without a loader."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytorch_lightning as pl
import torch

from agents.backbone import lay_out
from agents.build import build_agent, build_data
from agents.preflight import ImageCost
from agents.sources import build_source
from config.hparams import Hparams
from config.length import resolve_for_data
from config.parsing import Command, parse
from config.resolve import resolve
from datamodules.loading import Batch
from datamodules.self_supervised import ViewsDataModule
from utils.chunks import chunk_sizes
from utils.device import use_same_numbers, use_tensor_cores
from utils.memory import peak_mb, reset_peak

_WARM = 2  # steps that are not timed
_IMAGES = 100_000  # size of the data set, on which `auto` settings depend


@dataclass(frozen=True)
class StepCost:
    """Speed and memory of a training step.

    Attributes:
        images_per_second: images of the data set, each in all its views.
        flops_per_second: without recomputed passes.
        peak_mb: peak memory in MiB.
        waits: how often the host waits for a GPU in one step; None on the CPU.
    """

    images_per_second: float
    flops_per_second: float
    peak_mb: float
    waits: int | None


def settings_of(*words: str) -> Hparams:
    """Returns the settings of a command line, as for a large data set."""
    command = parse(["--data.name", "image_folder", "--data.root", ".", *words])
    assert isinstance(command, Command)
    return resolve_for_data(resolve(command.hparams), _IMAGES, torch.cuda.is_available())


def step_cost(hparams: Hparams, device: torch.device, steps: int) -> StepCost:
    """Trains a few steps with Lightning, as a run does, and times all but the first two.

    Args:
        hparams: of a pretraining, resolved.
        device: to train on.
        steps: number of timed steps.
    """
    precision, batch = hparams.trainer.precision, int(hparams.data.batch_size)
    chunk = hparams.trainer.chunk_size
    use_tensor_cores(precision, device)
    use_same_numbers(False, device)  # undoes what an earlier run may have set
    torch.manual_seed(0)
    source = build_source(hparams)
    agent = build_agent(hparams, source)
    lay_out(agent, device)
    data = cast(ViewsDataModule, build_data(hparams, source))
    sides = data.views.sizes
    # Recomputed passes do not count as work: FLOPs are those of a batch that passes at once.
    flops = ImageCost(agent, data).flops(chunks=0) or math.nan
    images = batch_of(
        sides, batch, chunk if isinstance(chunk, int) else None, pinned=device.type == "cuda"
    )
    clock = Clock(device, steps)
    trainer = pl.Trainer(
        accelerator=device.type,
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        max_steps=_WARM + steps,
        benchmark=True,  # as in pretraining
        deterministic=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
    )
    reset_peak(device)
    trainer.fit(agent, train_dataloaders=Again(images, _WARM + steps))
    a_second = steps * batch / clock.seconds
    return StepCost(a_second, a_second * flops, peak_mb(device), clock.waits)


@dataclass(frozen=True)
class Again:
    """A loader that yields the same batch `times` times."""

    batch: Batch
    times: int

    def __len__(self) -> int:
        """Returns the number of batches."""
        return self.times

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches."""
        return repeat(self.batch, self.times)


class Clock(pl.Callback):
    """Times all steps but the first ones, and counts the host's waits in the last of those."""

    def __init__(self, device: torch.device, steps: int) -> None:
        self.device = device
        self.steps = steps
        self.seconds = 0.0
        self.waits: int | None = None
        self._watch: Any = None
        self._seen: Any = ()

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Starts counting waits, or the clock, if it is the step for it."""
        if trainer.global_step == _WARM - 1 and self.device.type == "cuda":
            self._watch = warnings.catch_warnings(record=True)
            self._seen = self._watch.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        if trainer.global_step == _WARM:
            synchronise(self.device)
            self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stops what was started."""
        self._stop_watching()
        if trainer.global_step == _WARM + self.steps:
            synchronise(self.device)
            self.seconds = time.perf_counter() - self._started

    def on_exception(self, *_: Any) -> None:
        """Restores the warnings if a step does not fit into memory."""
        self._stop_watching()

    def _stop_watching(self) -> None:
        if self._watch is not None:
            torch.cuda.set_sync_debug_mode("default")
            self._watch.__exit__(None, None, None)
            self._watch = None
            # Leaves out the notice that the mode does not detect all such operations.
            self.waits = sum("called a synchronizing" in str(each.message) for each in self._seen)


def batch_of(sides: tuple[int, ...], size: int, chunk: int | None, pinned: bool) -> Batch:
    """Returns random images `(n, 3, S, S)` of every side, in chunks on the host."""
    views = []
    for side in sides:
        parts = [
            torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)
            for n in chunk_sizes(size, chunk)
        ]
        views.append([part.pin_memory() if pinned else part for part in parts])
    return Batch(tuple(views), torch.arange(size), ())


def synchronise(device: torch.device) -> None:
    """Waits for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
