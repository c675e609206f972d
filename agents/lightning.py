"""Builds Lightning's trainer from the settings of a run."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import SLURMEnvironment

from config.hparams import Hparams
from config.names import PRETRAINING
from datamodules.loading import BatchLoader, loaders_in


def lightning_trainer(hparams: Hparams, device: torch.device, **overrides: Any) -> pl.Trainer:
    """Returns a trainer that saves, logs and prints nothing, unless told to.

    Args:
        hparams: resolved settings.
        device: to train on.
        **overrides: arguments of Lightning's trainer, which replace those from the settings.

    Raises:
        ValueError: SLURM starts the processes in a way that Lightning does not support.
    """
    options = hparams.trainer
    settings: dict[str, Any] = {
        "max_epochs": int(options.max_epochs) if options.max_steps is None else -1,
        "max_steps": -1 if options.max_steps is None else options.max_steps,
        "precision": options.precision,
        "accelerator": device.type,
        "devices": options.devices,
        "num_nodes": options.num_nodes,
        "strategy": options.strategy,
        "sync_batchnorm": options.sync_batchnorm,
        "accumulate_grad_batches": options.accumulate,
        "gradient_clip_val": options.gradient_clip or None,
        "limit_val_batches": options.limit_val_batches,
        "limit_test_batches": options.limit_test_batches,
        "check_val_every_n_epoch": int(options.val_every_n_epochs),
        # cuDNN tries its algorithms for each image size, and pretraining has few sizes.
        "benchmark": hparams.task in PRETRAINING and not hparams.run.deterministic,
        # Bicubic interpolation has no deterministic gradient on CUDA: warn, do not stop.
        "deterministic": "warn" if hparams.run.deterministic else False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "use_distributed_sampler": False,
    }
    plugins = [*overrides.pop("plugins", [])]
    if SLURMEnvironment.detect():
        plugins.append(_slurm())
    return pl.Trainer(**settings | overrides, plugins=plugins)


def loaders_of(trainer: pl.Trainer) -> list[BatchLoader]:
    """Returns the loaders that a trainer has used so far, in any stage."""
    stages = (trainer.train_dataloader, trainer.val_dataloaders, trainer.test_dataloaders)
    return [loader for stage in stages for loader in loaders_in(stage)]


def stop_loading(trainer: pl.Trainer) -> None:
    """Ends the processes that have loaded images for a trainer."""
    for loader in loaders_of(trainer):
        loader.stop()


def _slurm() -> SLURMEnvironment:
    try:
        # Lightning's requeueing does not know how this project resumes a run.
        return SLURMEnvironment(auto_requeue=False)
    except RuntimeError as error:  # a job with several tasks
        alone = "To run one process: --ntasks=1, and --cpus-per-task for its cores."
        raise ValueError(f"SLURM: {error} {alone}") from error
