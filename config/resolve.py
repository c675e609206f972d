"""Replaces `auto` and null by the numbers a run will use, so that they can be written down."""

from __future__ import annotations

import os
from copy import deepcopy

from config.hparams import Hparams

# Peak learning rate at batch 256 and weight decay. adamw: small-ViT practice; lars: Barlow Twins
# official code; sgd: DINO's ResNet-50 recipe.
_OPTIMIZER_DEFAULTS = {"adamw": (1e-3, 0.05), "lars": (0.2, 1.5e-6), "sgd": (0.03, 1e-4)}


def resolve(hparams: Hparams) -> Hparams:
    """Returns a copy in which nothing is left to be guessed but the precision.

    The learning rate scales linearly with the batch for LARS and SGD (Goyal et al. 2017, as in both
    SSL papers), with its square root for AdamW (Malladi et al. 2022, as in DINOv2).
    """
    hparams = deepcopy(hparams)
    lr, weight_decay = _OPTIMIZER_DEFAULTS[hparams.optim.name]
    if hparams.optim.lr == "auto":
        power = 0.5 if hparams.optim.name == "adamw" else 1.0
        hparams.optim.lr = lr * (hparams.data.batch_size / 256) ** power
    if hparams.optim.weight_decay == "auto":
        hparams.optim.weight_decay = weight_decay
    if hparams.data.root is None:
        hparams.data.root = f"data/{hparams.data.name}"
    if hparams.data.num_workers is None:
        hparams.data.num_workers = min(8, max(1, (os.cpu_count() or 1) - 1))
    return hparams
