"""Resolves what depends on the number of images: batch, length, learning rate, cadences.

This is the last of the steps that `config.resolve` begins.
"""

from __future__ import annotations

import math
import multiprocessing
from bisect import bisect_left
from copy import deepcopy
from typing import Any

from config.hparams import Hparams
from config.resolve import (
    DEMONSTRATION_BATCH,
    DINO_TASKS,
    demonstrates,
    fill,
    learning_rate,
    learns_backbone,
    processes_of,
)
from config.rules import metadata
from config.settings_tree import leaves, set_leaf
from config.types import Cadence, StepCadence
from utils.cores import usable_cores

# Optimizer steps on a GPU, and the least and most epochs for them.
_PRETRAINING_STEPS, _PRETRAINING_EPOCHS = 20_000, (10, 400)
_HEAD_STEPS, _SEGMENTATION_STEPS, _SEGMENTATION_EPOCHS = 3000, 8000, (4, 400)
_CPU_SHARE = 0.1
_PROBE_EPOCHS = 100  # DINO's
_SPAWNED = 4  # loader processes, where each takes much
_LONGEST_WARMUP = 0.2  # share of a run of only a few epochs


def resolve_for_data(hparams: Hparams, images: int, on_gpu: bool) -> Hparams:
    """Returns a copy that has batch, length, learning rate and cadences for a number of images.

    Args:
        hparams: resolved by `resolve`.
        images: number of training images.
        on_gpu: runs on a CPU are shorter by default, and loaders leave one core free.
    """
    hparams = deepcopy(hparams)
    data, trainer, optim = hparams.data, hparams.trainer, hparams.optim
    if data.num_workers is None:
        data.num_workers = _num_workers(trainer.devices, on_gpu)
    if data.batch_size == "auto":
        processes = processes_of(hparams)
        shared = _batch_size(hparams, images) // processes
        data.batch_size = max(2, shared) * processes
        if isinstance(trainer.chunk_size, int) and trainer.chunk_size > data.batch_size:
            trainer.chunk_size = None  # not smaller than the whole batch
    per_epoch = steps_per_epoch(hparams, images)
    if trainer.max_epochs == "auto":
        trainer.max_epochs = _epochs(hparams, per_epoch, on_gpu)
    steps = steps_of_run(hparams, images)
    epochs = math.ceil(steps / per_epoch)
    if optim.warmup_epochs == "auto":
        usual = min(10, max(1, round(epochs / 20)))
        optim.warmup_epochs = round(min(usual, _LONGEST_WARMUP * steps / per_epoch), 3)
    if optim.lr == "auto":
        optim.lr = learning_rate(hparams)
    for leaf in leaves(hparams):
        for extra in metadata(leaf.annotation) if leaf.value == "auto" else ():
            if isinstance(extra, Cadence):
                set_leaf(hparams, leaf.path, extra.every(epochs, steps))
            elif isinstance(extra, StepCadence):
                set_leaf(hparams, leaf.path, extra.every(steps))
    if hparams.task in DINO_TASKS:
        _resolve_dino(hparams, images, per_epoch)
    return hparams


def _num_workers(devices: int, on_gpu: bool) -> int:
    """Returns the number of loaders of each process: on a GPU all cores, shared by processes.

    Few where each of them imports torch anew, half a gigabyte of memory and seconds: on Windows and
    macOS, which do not fork. As many again load the images of validations.
    """
    cores = usable_cores()
    if multiprocessing.get_start_method() == "spawn":
        cores = min(cores, _SPAWNED * devices)
    return max(1, cores // devices if on_gpu else min(8, cores - 1))


def steps_per_epoch(hparams: Hparams, images: int) -> int:
    """Returns the optimizer steps of an epoch; needs a resolved batch size."""
    batches = batches_per_epoch(hparams, images)
    return max(1, math.ceil(batches / hparams.trainer.accumulate))


def batches_per_epoch(hparams: Hparams, images: int) -> int:
    """Returns the whole batches of an epoch; needs a resolved batch size."""
    batches = images // int(hparams.data.batch_size)
    return min(batches, hparams.trainer.limit_train_batches or batches)


def images_of_step(hparams: Hparams) -> str:
    """Spells the images of an optimizer step: `64`, or `2 x 64` where batches are accumulated."""
    accumulate = hparams.trainer.accumulate
    batches = f"{accumulate} x " if accumulate > 1 else ""
    return f"{batches}{hparams.data.batch_size}"


def steps_of_run(hparams: Hparams, images: int) -> int:
    """Returns the optimizer steps of the whole run; needs resolved batch size and length."""
    trainer = hparams.trainer
    return trainer.max_steps or int(trainer.max_epochs) * steps_per_epoch(hparams, images)


def _batch_size(hparams: Hparams, images: int) -> int:
    """Returns a power of two with at least four steps per epoch (segmentation: eight).

    A correlation of few images is noise, so Barlow Twins uses 128 if there are as many images.
    """
    most, least, share = DEMONSTRATION_BATCH if demonstrates(hparams) else 256, 32, 4
    twins = hparams.task == "dino_twins" and hparams.dino_twins.term == "barlow_twins"
    if hparams.task == "barlow_twins" or twins:
        least = 128
    elif hparams.task == "segmentation":
        most, least, share = 16, 4, 8
    wanted = min(most, max(least, images // share))
    return 2 ** int(math.log2(max(2, min(wanted, images))))


def _epochs(hparams: Hparams, per_epoch: int, on_gpu: bool) -> int:
    if hparams.task == "linear_probe":
        return _PROBE_EPOCHS
    steps, (fewest, most) = _PRETRAINING_STEPS, _PRETRAINING_EPOCHS
    if hparams.task == "segmentation":
        steps = _SEGMENTATION_STEPS if learns_backbone(hparams) else _HEAD_STEPS
        fewest, most = _SEGMENTATION_EPOCHS
    wanted = steps * (1.0 if on_gpu else _CPU_SHARE) / per_epoch
    return min(most, max(fewest if on_gpu else 1, math.ceil(wanted)))


# DINO's settings by the number of images, after lightly-train: few images need few prototypes, and
# a teacher that is sharper and follows faster.
_OUT_DIMS = (1024, 2048, 4096, 16384, 32768, 65536)
_OUT_DIM_LIMITS = (20_000, 50_000, 100_000, 200_000, 500_000)
_SMALL, _IMAGENET = 20_000, 1_281_167  # images; temperature and momentum change in between
_MAX_WARMUP_STEPS, _MAX_FROZEN_STEPS = 37_500, 1250


def _resolve_dino(hparams: Hparams, images: int, per_epoch: int) -> None:
    steps = steps_of_run(hparams, images)
    start = math.ceil(0.3 * steps)
    share = min(1.0, max(0.0, (images - _SMALL) / (_IMAGENET - _SMALL)))
    chosen: dict[str, Any] = {
        "dino.out_dim": _OUT_DIMS[bisect_left(_OUT_DIM_LIMITS, images)],
        "dino.teacher_temp": 0.02 + share * 0.05,
        "dino.warmup_teacher_temp_steps": min(_MAX_WARMUP_STEPS, start),
        "dino.momentum_teacher": 0.99 + share * 0.006,
        "dino.freeze_last_layer_steps": min(_MAX_FROZEN_STEPS, per_epoch, start),
    }
    fill(hparams, chosen)
    fill(hparams, {"dino.warmup_teacher_temp": min(0.04, float(hparams.dino.teacher_temp))})
