"""Begins a run in its folder and resumes it from there, without losing what was done."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from pytorch_lightning.loggers import Logger

from agents.base import Agent
from config.lookup import check_complete
from utils.checkpoint_io import or_best, resumable
from utils.checkpoints import map_run_checkpoint
from utils.console import console
from utils.device import device_name
from utils.environment import record_environment
from utils.files import sweep, write_atomically
from utils.logging import own_log
from utils.run_folder import RunFolder


def checkpoint_to_resume(resume: str) -> Path | None:
    """Returns the checkpoint that a run resumes from.

    Args:
        resume: `none` or the folder of a run.

    Returns:
        None for a new run, and for one that was stopped before its first checkpoint.

    Raises:
        ValueError: its checkpoints or settings are damaged. Or its checkpoints are gone, so that
            starting anew would remove its results. Or something else is in the place of a file
            that the run will write.
    """
    if resume == "none":
        return None
    folder = RunFolder(Path(resume))
    folder.check_places()
    checkpoint, summary = resumable(folder), folder.read_summary()
    if checkpoint is None and (folder.finished or summary.get("epochs")):
        raise ValueError(
            f"--run.resume {resume}: its checkpoints are gone, so it would start anew and remove "
            f"its results. Put last.ckpt back{or_best(folder)}, or repeat it under another name: "
            f"--experiment {folder.hparams}"
        )
    if checkpoint is not None and folder.hparams.exists():
        check_complete(folder.hparams, map_run_checkpoint(checkpoint)["hyper_parameters"])
    return checkpoint


def begin(folder: RunFolder, resumed: bool, accelerator: str) -> None:
    """Tidies up the folder of a run, which this process has locked, and records its environment.

    Args:
        folder: of the run.
        resumed: whether it goes on from a checkpoint; else it starts anew.
        accelerator: trains the run.
    """
    sweep(folder.path)
    known = folder.read_environment()
    if resumed and known:
        return
    if not resumed:
        if known:
            console.info("%s was stopped before its first checkpoint: it starts anew.", folder.path)
        folder.clear()
    record_environment(folder, device_name(accelerator))


def forget_later_steps(loggers: Sequence[Logger], checkpoint: Path) -> None:
    """Drops what was logged after a checkpoint was written."""
    # Rows count steps from 0: this one is for the next step, and for the test, which is repeated.
    step = int(map_run_checkpoint(checkpoint)["global_step"])
    if log := own_log(loggers):
        log.forget_from(step)


def flush(loggers: Sequence[Logger]) -> None:
    """Writes what has been logged, so that a checkpoint is never ahead of it."""
    if log := own_log(loggers):
        log.flush_for_checkpoint()


def save_backbone(agent: Agent, folder: RunFolder) -> None:
    """Writes the backbone's last weights to backbone.pth, with the keys of its public layout.

    Raises:
        OSError: it cannot be written.
    """
    state = {key: value.cpu() for key, value in agent.backbone.net.state_dict().items()}
    content = io.BytesIO()
    torch.save(state, content)
    write_atomically(folder.backbone, content.getvalue())
