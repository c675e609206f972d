"""Lets a segmentation read the features of its frozen backbone instead of computing them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from config.hparams import Hparams
from datamodules.digests import tensors_digest
from datamodules.segmentation import SegmentationDataModule
from models.segmenter import Segmenter
from utils.device import arithmetic


def caches_features(network: Segmenter, hparams: Hparams) -> bool:
    """Whether the features of a run's images never change, and are to be cached."""
    data = hparams.data
    return network.backbone.frozen and data.views == "fixed" and data.feature_cache != "off"


def cache_features(
    network: Segmenter,
    data: SegmentationDataModule,
    hparams: Hparams,
    classes: Sequence[str],
    test: bool,
    device: torch.device,
) -> None:
    """Makes `data` return cached features with its images; computes those that are missing.

    Args:
        network: with its weights.
        data: of the same run.
        hparams: resolved settings.
        classes: names by label.
        test: whether test images are seen whole and once, so that their features are cached too.
        device: computes missing features.

    Raises:
        ValueError: the folder cannot be written, or there is not enough room.
    """
    choice = hparams.data.feature_cache
    root = Path(hparams.run.dir) / ".cache" if choice == "auto" else Path(choice)
    backbone, twin = network.backbone, network.fusion.twin
    facts = {
        "weights": tensors_digest(backbone.state_dict()),
        "twin": tensors_digest(twin.state_dict()) if twin else None,
        "backbone": [backbone.recipe, hparams.backbone.layers, network.multiple],
        "attention": repr(network.fusion.request),
        "classes": tuple(classes),
        **arithmetic(device),
    }
    training = network.training
    network.eval().to(device)
    data.cache_features(root, facts, network.stored_features, test)
    network.train(training).cpu()
