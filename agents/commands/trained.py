"""Loads the agent of a trained run."""

from __future__ import annotations

from pathlib import Path

from agents.base import Agent
from agents.build import build_agent
from agents.checkpoint_check import check_fits
from agents.sources import build_source
from config.hparams import Hparams
from config.lookup import check_complete
from config.resolve import resolve
from datamodules.listed_classes import ListedClasses
from datamodules.sources import ImageSource
from utils.console import quiet_libraries
from utils.run_checkpoints import read_run_checkpoint
from utils.run_folder import RunFolder


def trained_agent(
    folder: RunFolder, hparams: Hparams, checkpoint: Path
) -> tuple[Agent, Hparams, ImageSource]:
    """Builds the agent of a run with the weights of a checkpoint.

    Args:
        folder: the run.
        hparams: its settings, with those given on the command line.
        checkpoint: its best one, or its last.

    Raises:
        FileNotFoundError: the run has no such checkpoint.
        ValueError: settings and checkpoint do not fit, or one of them is damaged.
    """
    if not checkpoint.is_file():
        raise FileNotFoundError(f"{folder.path} has no checkpoint {checkpoint.name}.")
    quiet_libraries()
    saved = read_run_checkpoint(checkpoint)
    if folder.hparams.exists():
        check_complete(folder.hparams, saved["hyper_parameters"])
    hparams = resolve(hparams)
    source = build_source(hparams)
    if isinstance(source, ListedClasses):
        source.learnt = tuple(saved.get("classes", ()))
    agent = build_agent(hparams, source, loaded=False)
    check_fits(agent, checkpoint, saved)
    agent.load_state_dict(saved["state_dict"])
    return agent.eval(), hparams, source
