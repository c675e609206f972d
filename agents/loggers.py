"""Where a run reports: its own folder always, wandb and TensorBoard when they are there."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from pytorch_lightning.loggers import Logger, TensorBoardLogger

from agents.wandb_run import WandbRun, start
from config.hparams import LoggerHparams
from utils.logging import RunFolderLogger
from utils.run_folder import RunFolder, write_environment


def build_loggers(settings: LoggerHparams, folder: RunFolder) -> list[Logger]:
    """Returns the active loggers, the run folder's first."""
    loggers: list[Logger] = [RunFolderLogger(folder)]
    if importlib.util.find_spec("tensorboard"):
        loggers.append(TensorBoardLogger(folder.path, name="", version="tensorboard"))
    run = start(settings, folder)
    if run is not None:
        loggers.append(WandbRun(run))
        write_environment(folder, folder.read_environment() | {"wandb_id": run.id})
    return loggers


def finish(loggers: Sequence[Logger]) -> list[str]:
    """Closes the loggers.

    Returns:
        How to look at what they hold.
    """
    hints: list[str] = []
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            hints.append(f"tensorboard --logdir {logger.log_dir}")
        elif isinstance(logger, WandbRun):
            hints.append(logger.finish())
    return hints
