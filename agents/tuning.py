"""Finds the largest chunk that fits this machine, and a learning rate."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.tuner import Tuner

from agents.base import Agent
from agents.lightning import stop_loading
from datamodules.base import ImageDataModule
from datamodules.loading import Batch
from utils.chunks import chunk_sizes
from utils.memory import (
    available_mb,
    free_mb,
    free_unused,
    is_out_of_memory,
    peak_mb,
    reset_peak,
    resident_mb,
)
from utils.rng import rng_preserved

# Share of the free memory that a chunk may take. The rest is for the host's other processes or, on
# a GPU, for readouts and fragmentation.
CPU_SHARE, GPU_SHARE = 0.8, 0.92
LR_STEPS = 60
_FIRST = 8  # chunk size to try first

TrainerFactory = Callable[..., pl.Trainer]


def largest_working(largest: int, fits: Callable[[int], bool]) -> int:
    """Doubles from 8 until a value does not fit; halves instead if 8 itself does not.

    Args:
        largest: the last value worth trying.
        fits: tries a value.

    Returns:
        The largest value that was tried and fitted.

    Raises:
        ValueError: not even 2 fits.
    """
    value = min(_FIRST, largest)
    limit = largest + 1  # the smallest value known not to fit
    while not fits(value):
        limit = value
        value //= 2
        if value < 2:
            raise ValueError(
                "Not even 2 images at once fit into memory. Use a smaller backbone or image_size."
            )
    best = value
    while best < (value := min(2 * best, largest)) < limit and fits(value):
        best = value
    return best


def tune_chunk_size(
    agent: Agent,
    make_trainer: TrainerFactory,
    batch_size: int,
    view_sizes: Sequence[int],
    device: torch.device,
) -> int:
    """Searches the largest `chunk_size` by training a copy for two real steps on random images.

    Two, because the optimizer allocates its state in the first. A chunk that fits leaves a reserve.
    On the CPU a chunk is not tried if its memory, extrapolated from the last one, would exceed what
    is available.

    Args:
        agent: is copied.
        make_trainer: builds a Lightning trainer.
        batch_size: images per step.
        view_sizes: side of each view of an image in pixels.
        device: where it trains.

    Returns:
        A chunk size that was tried; `batch_size` when the whole batch fits at once.
    """
    last: tuple[int, float] | None = None

    def fits(chunk: int) -> bool:
        nonlocal last
        on_cpu = device.type == "cpu"
        free = available_mb() if on_cpu else free_mb(device)
        if on_cpu and last and last[1] * chunk / last[0] > CPU_SHARE * free:
            return False
        try:
            used = _probe(agent, make_trainer, batch_size, chunk, view_sizes, device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            free_unused(device)
        last = (chunk, used)
        return used < CPU_SHARE * (available_mb() + used) if on_cpu else used <= GPU_SHARE * free

    return largest_working(batch_size, fits)


def _probe(
    agent: Agent,
    make_trainer: TrainerFactory,
    batch_size: int,
    chunk: int,
    view_sizes: Sequence[int],
    device: torch.device,
) -> float:
    sizes = chunk_sizes(batch_size, chunk)
    with rng_preserved(device), tempfile.TemporaryDirectory() as folder:
        views = tuple(
            [torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8) for n in sizes]
            for side in view_sizes
        )
        batch = Batch(views, torch.arange(batch_size), ())
        # Without cuDNN's search for fast algorithms: it takes all memory, which would be counted.
        length = {"max_steps": 2, "max_epochs": -1, "benchmark": False}
        trainer = make_trainer(**length, default_root_dir=folder, callbacks=[])
        if isinstance(trainer.precision_plugin, MixedPrecision):
            # It leaves steps out that overflow, as first ones do: what they allocate as well.
            trainer.precision_plugin.scaler = None
        before = resident_mb()
        reset_peak(device)
        trainer.fit(copy.deepcopy(agent), _Repeated(batch))
        return max(0.0, peak_mb(device) - (before if device.type == "cpu" else 0.0))


class _Repeated:
    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Batch]:
        return iter([self.batch] * 2)


def tune_lr(
    agent: Agent, datamodule: ImageDataModule, make_trainer: TrainerFactory, device: torch.device
) -> float:
    """Runs Lightning's learning-rate finder on a copy (Smith 2017).

    Args:
        agent: is copied.
        datamodule: is copied.
        make_trainer: builds a Lightning trainer.
        device: where it trains.

    Raises:
        ValueError: the loss curve has no usable slope.
    """
    with rng_preserved(device), tempfile.TemporaryDirectory() as folder:
        # Short epochs would each end with a validation, whose limit the finder lifts.
        never = {"check_val_every_n_epoch": LR_STEPS + 1}
        trainer = make_trainer(
            max_steps=LR_STEPS, max_epochs=-1, default_root_dir=folder, callbacks=[], **never
        )
        try:
            finder: Any = Tuner(trainer).lr_find(
                copy.deepcopy(agent),
                datamodule=copy.deepcopy(datamodule),
                num_training=LR_STEPS,
                min_lr=1e-6,
                max_lr=1.0,
            )
        finally:
            stop_loading(trainer)
        suggestion = finder.suggestion() if finder else None
    if suggestion is None or not math.isfinite(suggestion):
        raise ValueError("--trainer.tune_lr found no slope in the loss. Set --optim.lr yourself.")
    return float(suggestion)
