"""Where a run reports: always its own folder; wandb and TensorBoard if available."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from agents.wandb_run import WandbRun
from agents.wandb_start import start
from callbacks.guard import Guard
from config.hparams import Hparams
from utils.figures import Picture
from utils.imports import is_installed
from utils.logging import RunFolderLogger
from utils.run_folder import RunFolder


class TensorBoard(TensorBoardLogger):
    """Lightning's logger, which here takes figures as well."""

    @rank_zero_only
    def log_figure(
        self, kind: str, picture: Picture, step: int, arrays: Mapping[str, NDArray[Any]] | None
    ) -> None:
        """Logs a figure."""
        self.experiment.add_image(kind, picture.pixels, step, dataformats="HWC")


def build_loggers(
    hparams: Hparams,
    folder: RunFolder,
    goals: Mapping[str, str],
    transductive: bool,
    guard: Guard,
) -> list[Logger]:
    """Returns the active loggers, the run folder's first.

    Args:
        hparams: resolved settings.
        folder: of the run.
        goals: names of the numbers that matter, each with `max` or `min`, whichever is best.
        transductive: see `is_transductive`.
        guard: wraps all but the first, which handles its own errors.
    """
    loggers: list[Logger] = [RunFolderLogger(folder)]
    if is_installed("tensorboard"):
        board = TensorBoard(folder.path, name="", version="tensorboard")
        loggers.append(guard.around_logger("tensorboard", board))
    tags = [hparams.backbone.name, hparams.data.name, *(["transductive"] if transductive else [])]
    run = start(hparams.logger, folder, hparams.task, tags)
    if run is not None:
        folder.write_environment(folder.read_environment() | {"wandb_id": run.id})
        loggers.append(logger := guard.around_logger("wandb", WandbRun(run, goals)))
        logger.attach(folder, "hparams.yaml", "environment.json", "code.patch")
    return loggers


def finish(loggers: Sequence[Logger], folder: RunFolder, facts: Mapping[str, Any]) -> list[str]:
    """Closes the loggers.

    Args:
        loggers: of the run.
        folder: of the run.
        facts: of the summary, beside the numbers that were logged.

    Returns:
        How to view what they recorded.
    """
    hints: list[str] = []
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            hints.append(f"tensorboard --logdir {logger.log_dir}")
        elif isinstance(logger, WandbRun):
            logger.attach(folder, "summary.json", "metrics.csv", "report.html")
            hints.append(logger.finish(facts))
    return hints
