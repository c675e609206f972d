"""Lets a segmentation read the features of its frozen backbone instead of computing them."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
import torch

from agents.segmentation import Segmentation
from config.hparams import Hparams
from datamodules.base import ImageDataModule
from datamodules.feature_cache import weights_digest
from datamodules.segmentation import SegmentationDataModule
from models.inference import WHOLE
from utils.checkpoints import read_checkpoint


def use_feature_cache(
    agent: pl.LightningModule,
    data: ImageDataModule,
    hparams: Hparams,
    device: torch.device,
    checkpoint: Path | None,
) -> None:
    """Makes `data` give features with its images where the settings allow it.

    Args:
        agent: any; only a segmentation on a frozen backbone has features to keep.
        data: of the same task.
        hparams: resolved settings.
        device: computes what is missing.
        checkpoint: of a run that is continued; the agent gets its weights only later otherwise.

    Raises:
        ValueError: the folder cannot be written, or there is not enough room.
    """
    choice = hparams.data.feature_cache
    if not isinstance(agent, Segmentation) or not isinstance(data, SegmentationDataModule):
        return
    if hparams.data.views != "fixed" or choice == "off" or not agent.backbone.frozen:
        return
    if checkpoint is not None:
        agent.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
    root = Path(hparams.run.dir) / ".cache" if choice == "auto" else Path(choice)
    network, backbone, twin = agent.network, agent.backbone, agent.network.fusion.twin
    facts = {
        "weights": weights_digest(backbone.state_dict()),
        "twin": weights_digest(twin.state_dict()) if twin else None,
        "backbone": [type(backbone).__name__, hparams.backbone.layers, network.multiple],
        "attention": repr(network.fusion.request),
        "classes": agent.classes,
    }
    training = agent.training
    agent.eval().to(device)
    data.keep(root, facts, network.stored_features, agent.inference == WHOLE)
    agent.train(training).cpu()
