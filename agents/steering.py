"""Callbacks that steer a run: checkpoints, early stopping, and safeguards to end and resume."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from agents.base import Agent
from callbacks.early_stopping import early_stopping
from callbacks.lost_process import LostProcess
from callbacks.non_finite_loss import NonFiniteLoss
from callbacks.random_state import RandomState
from callbacks.step_numbers import StepNumbers
from callbacks.validation_workers import ValidationWorkers
from config.hparams import Hparams
from datamodules.base import ImageDataModule
from utils.run_folder import RunFolder


def safeguards(folder: RunFolder, seed: int, device: torch.device) -> list[pl.Callback]:
    """Returns the callbacks that let a run end cleanly, and resume exactly.

    Args:
        folder: of the run.
        seed: of the run.
        device: trains the run.
    """
    return [
        LostProcess(folder),
        NonFiniteLoss(folder.last),
        RandomState(seed, device),
        StepNumbers(),
        ValidationWorkers(),
    ]


def choosing(agent: Agent, data: ImageDataModule, folder: RunFolder) -> list[pl.Callback]:
    """Returns the callbacks that save the best and the last checkpoint, and stop early.

    Args:
        agent: says what is best.
        data: loads its images.
        folder: of the run.
    """
    common: dict[str, Any] = {"dirpath": folder.checkpoints, "enable_version_counter": False}
    last = ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **common)
    stopping = agent.settings.callbacks.early_stopping
    choice = agent.monitor
    if choice is None or not validates(agent.settings, data):
        return [last]
    monitor, mode = choice
    # Written together with the last one, so that both are one file if this epoch is the best.
    best = ModelCheckpoint(
        filename="best", monitor=monitor, mode=mode, save_on_train_epoch_end=True, **common
    )
    stop = [early_stopping(monitor, mode, stopping.patience)] if stopping.enabled else []
    return [best, last, *stop]


def check_stopping(hparams: Hparams, data: ImageDataModule) -> None:
    """Checks that a run that may stop early has validations to stop by.

    Raises:
        ValueError: it has none.
    """
    if hparams.callbacks.early_stopping.enabled and not validates(hparams, data):
        raise ValueError("--callbacks.early_stopping needs validation images: none here.")


def validates(hparams: Hparams, data: ImageDataModule) -> bool:
    """Whether training is interrupted to measure held-out images."""
    return hparams.trainer.limit_val_batches != 0 and data.validates
