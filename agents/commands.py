"""What `python main.py` can do besides training."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytorch_lightning as pl
from pytorch_lightning.utilities.model_helpers import is_overridden

from agents.build import build_agent, build_data, build_figure_callbacks, check_fits
from agents.compare import write_comparison
from agents.export import check_finished, export
from agents.predict import predict
from agents.study.runner import print_commands, run_study
from agents.trainer import Agent, Trainer
from callbacks.attention_quality import AttentionQuality
from config.finding import find_run
from config.hparams import Hparams
from config.parsing import Command
from config.resolve import resolve
from config.study import load_study
from utils.console import quiet_libraries
from utils.run_folder import RunFolder
from utils.weights import read_checkpoint


def execute(command: Command) -> int:
    """Carries a command out and returns the exit code."""
    hparams, runs_dir = command.hparams, command.hparams.run.dir
    if command.study:
        study = load_study(command.study, command.seeds, command.overrides, runs_dir)
        return print_commands(study) if command.print_commands else run_study(study)
    if command.compare:
        folders = [RunFolder(find_run(run, runs_dir)) for run in command.compare]
        print(write_comparison(folders, runs_dir))
        return 0
    if command.export:
        folder = RunFolder(find_run(command.export, runs_dir))
        check_finished(folder)
        agent, _ = trained_agent(folder, hparams, folder.last)
        print("\n".join(export(agent, folder)))
        return 0
    if command.evaluate:
        return evaluate(RunFolder(find_run(command.evaluate, runs_dir)), hparams)
    if command.predict and command.images:
        folder = RunFolder(find_run(command.predict, runs_dir))
        agent, hparams = trained_agent(folder, hparams, folder.chosen)
        return predict(agent, hparams, folder, Path(command.images))
    return Trainer(hparams, command.experiment).run()


def trained_agent(
    folder: RunFolder, hparams: Hparams, checkpoint: Path
) -> tuple[pl.LightningModule, Hparams]:
    """Builds the agent of a run with the weights of a checkpoint.

    Args:
        folder: the run.
        hparams: its settings, those given on the command line instead of them included.
        checkpoint: its best one, or its last.

    Raises:
        FileNotFoundError: the run has no such checkpoint.
        ValueError: the settings do not fit the checkpoint.
    """
    if not checkpoint.exists():
        raise FileNotFoundError(f"{folder.path} has no checkpoint {checkpoint.name}.")
    quiet_libraries()
    hparams = resolve(hparams)
    agent = build_agent(hparams, load=False)
    check_fits(agent, checkpoint)
    agent.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
    return agent.eval(), hparams


def evaluate(folder: RunFolder, hparams: Hparams) -> int:
    """Judges the best checkpoint of a run and adds `evaluate/…` to its summary.

    On the test set, by the protocol of the settings, where the task has a test; else on the
    validation set.
    """
    agent, hparams = trained_agent(folder, hparams, folder.chosen)
    data = build_data(hparams)
    trainer = pl.Trainer(
        accelerator=hparams.trainer.accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        default_root_dir=folder.path,
        callbacks=[c for c in build_figure_callbacks(hparams) if isinstance(c, AttentionQuality)],
    )
    if is_overridden("test_step", agent):
        (metrics,) = trainer.test(agent, datamodule=data, verbose=False)
        facts = cast(Agent, agent).facts
        how = [facts[name] for name in ("protocol", "inference") if name in facts]
        how = [words for words in how if words != "whole"]
        old, new = "test/", "/".join(["evaluate", *how, ""])
    else:
        (metrics,) = trainer.validate(agent, datamodule=data, verbose=False)
        old, new = "val/", "evaluate/"
    found = {name.replace(old, new, 1): value for name, value in metrics.items()}
    folder.write_summary(folder.read_summary() | found)
    for name, value in found.items():
        print(f"{name:48s} {value:.4f}")
    return 0
