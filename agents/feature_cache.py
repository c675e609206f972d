"""Lets a segmentation read what its frozen backbone says of its images instead of computing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from config.hparams import Hparams
from datamodules.base import ImageDataModule
from datamodules.feature_cache import weights_digest
from datamodules.segmentation import SegmentationDataModule
from models.inference import Inference
from utils.checkpoints import read_checkpoint


def use_feature_cache(
    agent: Any,
    data: ImageDataModule,
    hparams: Hparams,
    device: torch.device,
    checkpoint: Path | None,
) -> None:
    """Makes `data` give features with its images where the settings allow it.

    Args:
        agent: a segmentation.
        data: of the same task.
        hparams: resolved settings.
        device: computes what is missing.
        checkpoint: of a run that is continued; the agent gets its weights only later otherwise.

    Raises:
        ValueError: the folder cannot be written, or there is not enough room.
    """
    choice = hparams.data.feature_cache
    if not isinstance(data, SegmentationDataModule):
        return
    if hparams.data.views != "fixed" or choice == "off" or not agent.backbone.frozen:
        return
    if checkpoint is not None:
        agent.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
    root = Path(hparams.run.dir) / ".cache" if choice == "auto" else Path(choice)
    backbone, fusion = agent.backbone, agent.fusion
    facts = {
        "weights": weights_digest(backbone.state_dict()),
        "twin": weights_digest(fusion.twin.state_dict()) if fusion.twin else None,
        "backbone": [type(backbone).__name__, hparams.backbone.layers, agent.multiple],
        "attention": repr(fusion.request),
        "classes": agent.classes,
    }
    training = agent.training
    agent.eval().to(device)
    data.keep(root, facts, agent.stored_features, agent.inference == Inference())
    agent.train(training).cpu()
