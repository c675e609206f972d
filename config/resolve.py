"""Replaces `auto` and null by the numbers a run will use, so that they can be written down."""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from copy import deepcopy
from typing import Any

from config.convert import get_leaf, leaves
from config.hparams import Hparams
from config.validation import no_effect

# Weight decay. adamw: small-ViT practice; lars: Barlow Twins official code; sgd: DINO's ResNet-50.
_WEIGHT_DECAY = {"adamw": 0.05, "lars": 1.5e-6, "sgd": 1e-4}
_DINO_TASKS = ("dino", "dino_twins")
_DINO_WEIGHT_DECAY, _DINO_FINAL_WEIGHT_DECAY = 0.04, 0.4
_DINO_LR = 5e-4  # adamw, at batch 256
# Peak learning rate of self-supervised training at batch 256, from the same sources.
_PRETRAINING_LR = {"adamw": 1e-3, "lars": 0.2, "sgd": 0.03}
# Of a segmentation head at batch 16 (the study's; SETR's and DeepLab's SGD), and of the loaded
# backbone below it when that is trained too (SegFormer's AdamW).
_HEAD_LR = {"adamw": 5e-3, "lars": 0.01, "sgd": 0.01}
_FINE_TUNING_LR = {"adamw": 1e-4, "lars": 0.01, "sgd": 0.01}
# Of a linear classifier on standardised features, at batch 256.
_PROBE_LR = {"adamw": 1e-3, "lars": 0.1, "sgd": 0.1}


def resolve(hparams: Hparams) -> Hparams:
    """Returns a copy in which nothing is left to be guessed but precision and data-set size."""
    hparams = deepcopy(hparams)
    if hparams.optim.lr == "auto":
        hparams.optim.lr = _learning_rate(hparams)
    _resolve_weight_decay(hparams)
    _resolve_crops(hparams)
    if hparams.data.root is None:
        hparams.data.root = f"data/{hparams.data.name}"
    if hparams.data.num_workers is None:
        hparams.data.num_workers = min(8, max(1, (os.cpu_count() or 1) - 1))
    return hparams


def _learning_rate(hparams: Hparams) -> float:
    """Scales with the batch linearly for LARS and SGD, with its square root for AdamW.

    Goyal et al. 2017, as in both SSL papers; Malladi et al. 2022, as in DINOv2.
    """
    name, backbone = hparams.optim.name, hparams.backbone
    if hparams.task == "segmentation" and backbone.freeze and not backbone.unfreeze_last:
        base, batch = _HEAD_LR[name], 16
    elif hparams.task == "segmentation" and backbone.weights != "none":
        base, batch = _FINE_TUNING_LR[name], 16
    elif hparams.task == "linear_probe":
        base, batch = _PROBE_LR[name], 256
    elif hparams.task in _DINO_TASKS and name == "adamw":
        base, batch = _DINO_LR, 256
    else:
        base, batch = _PRETRAINING_LR[name], 256
    return base * (hparams.data.batch_size / batch) ** (0.5 if name == "adamw" else 1.0)


def _resolve_weight_decay(hparams: Hparams) -> None:
    optim = hparams.optim
    dino = hparams.task in _DINO_TASKS
    rising = dino and optim.name == "adamw"
    if optim.weight_decay == "auto" and hparams.task == "linear_probe":
        optim.weight_decay = 0.0  # DINO's linear evaluation
    if optim.weight_decay == "auto":
        optim.weight_decay = _DINO_WEIGHT_DECAY if rising else _WEIGHT_DECAY[optim.name]
    if dino and optim.final_weight_decay == "auto":
        optim.final_weight_decay = _DINO_FINAL_WEIGHT_DECAY if rising else optim.weight_decay


def _resolve_crops(hparams: Hparams) -> None:
    if hparams.task not in _DINO_TASKS:
        return
    dino = hparams.dino
    if dino.local_crop_size == "auto":
        # 96 for 224, as in the paper; most patch sizes divide 16.
        dino.local_crop_size = 16 * max(1, round(hparams.data.image_size * 3 / 7 / 16))
    if not dino.global_crops_scale:
        local = dino.multi_crop and dino.local_crops_number > 0
        dino.global_crops_scale = [0.4, 1.0] if local else [0.14, 1.0]


# What DINO needs at a given number of images, after lightly-train's observations: few images need
# few prototypes, a sharper teacher and a faster one.
_OUT_DIMS = (1024, 2048, 4096, 16384, 32768, 65536)
_OUT_DIM_LIMITS = (20_000, 50_000, 100_000, 200_000, 500_000)
_SMALL, _IMAGENET = 20_000, 1_281_167  # images between which temperature and momentum move
_MAX_WARMUP_STEPS, _MAX_FROZEN_STEPS = 37_500, 1250


def resolve_for_data(hparams: Hparams, images: int) -> Hparams:
    """Returns a copy with what `auto` makes depend on the size of the data set.

    Args:
        hparams: resolved otherwise.
        images: number of training images.
    """
    hparams = deepcopy(hparams)
    if hparams.task not in _DINO_TASKS:
        return hparams
    trainer, dino = hparams.trainer, hparams.dino
    per_epoch = max(1, images // hparams.data.batch_size // trainer.accumulate)
    steps = trainer.max_steps or trainer.max_epochs * per_epoch
    share = min(1.0, max(0.0, (images - _SMALL) / (_IMAGENET - _SMALL)))
    chosen: dict[str, Any] = {
        "out_dim": _OUT_DIMS[bisect_left(_OUT_DIM_LIMITS, images)],
        "teacher_temp": 0.02 + share * 0.05,
        "warmup_teacher_temp_steps": min(_MAX_WARMUP_STEPS, math.ceil(0.3 * steps)),
        "momentum_teacher": 0.99 + share * 0.006,
        "freeze_last_layer_steps": min(_MAX_FROZEN_STEPS, per_epoch),
    }
    for name, value in chosen.items():
        if getattr(dino, name) == "auto":
            setattr(dino, name, value)
    if dino.warmup_teacher_temp == "auto":
        dino.warmup_teacher_temp = min(0.04, float(dino.teacher_temp))
    return hparams


def choices(given: Hparams, resolved: Hparams) -> str:
    """Says in one line what became of every `auto` that this run reads; empty without any."""
    left_open = [leaf.path for leaf in leaves(given) if leaf.value in ("auto", [])]
    found = {
        path: get_leaf(resolved, path)
        for path in left_open
        if get_leaf(resolved, path) not in ("auto", []) and not no_effect(resolved, path)
    }
    words = ", ".join(f"{path} {_shown(value)}" for path, value in found.items())
    return f"auto: {words}" if words else ""


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
