"""Replaces `auto` and null by the numbers a run will use, so that they can be written down."""

from __future__ import annotations

import os
from copy import deepcopy

from config.hparams import Hparams

# Weight decay. adamw: small-ViT practice; lars: Barlow Twins official code; sgd: DINO's ResNet-50.
_WEIGHT_DECAY = {"adamw": 0.05, "lars": 1.5e-6, "sgd": 1e-4}
# Peak learning rate of self-supervised training at batch 256, from the same sources.
_PRETRAINING_LR = {"adamw": 1e-3, "lars": 0.2, "sgd": 0.03}
# Of a segmentation head at batch 16 (the study's; SETR's and DeepLab's SGD), and of the loaded
# backbone below it when that is trained too (SegFormer's AdamW).
_HEAD_LR = {"adamw": 5e-3, "lars": 0.01, "sgd": 0.01}
_FINE_TUNING_LR = {"adamw": 1e-4, "lars": 0.01, "sgd": 0.01}


def resolve(hparams: Hparams) -> Hparams:
    """Returns a copy in which nothing is left to be guessed but the precision."""
    hparams = deepcopy(hparams)
    if hparams.optim.lr == "auto":
        hparams.optim.lr = _learning_rate(hparams)
    weight_decay = _WEIGHT_DECAY[hparams.optim.name]
    if hparams.optim.weight_decay == "auto":
        hparams.optim.weight_decay = weight_decay
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
    else:
        base, batch = _PRETRAINING_LR[name], 256
    return base * (hparams.data.batch_size / batch) ** (0.5 if name == "adamw" else 1.0)
