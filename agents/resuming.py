"""Begins a run in its folder, or resumes it, if its checkpoint and the settings allow that.

The checkpoint has weights, optimizer state, random states and the position in the run; learning
rates, decay, momentum, schedules and length come from the settings (`agents/optimizers.py`).
Refused is what could not take effect: changed settings that `config/hparams.py` marks `Kept`,
other images, an end before the steps that are done. `agents/build.py` checks that the network fits.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.utilities import rank_zero_warn

from agents.base import Agent
from agents.steering import validates
from config.hparams import Hparams
from config.length import steps_of_run
from config.lookup import check_complete
from config.rules import get_leaf, unmet
from config.saved_settings import check_kept, given_anew, remeasured
from datamodules.base import ImageDataModule
from utils.console import console
from utils.device import device_name
from utils.environment import record_environment
from utils.files import sweep
from utils.run_checkpoints import check_weights, map_run_checkpoint, or_best, resumable
from utils.run_folder import RunFolder
from utils.text import count


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

    Raises:
        ValueError: it would start anew, and there is a checkpoint by now.
    """
    if not resumed and folder.has_checkpoint:
        raise ValueError(
            f"{folder.path} was trained by another process in the meantime. To go on with it, give "
            "the same command again, with --run.resume."
        )
    sweep(folder.path)
    known = folder.read_environment()
    if resumed and known:
        return
    if not resumed:
        if known:
            console.info("%s was stopped before its first checkpoint: it starts anew.", folder.path)
        folder.clear()
    record_environment(folder, device_name(accelerator))


def check_continues(
    agent: Agent, data: ImageDataModule, file: Path, checkpoint: Mapping[str, Any]
) -> None:
    """Checks that a run can go on, before anything is written.

    Args:
        agent: built from the settings.
        data: its images listed.
        file: the checkpoint's, for the message.
        checkpoint: its content.

    Raises:
        ValueError: it cannot; names the setting and what to do.
    """
    hparams = agent.settings
    check_kept(hparams, checkpoint["hyper_parameters"])
    if not agent.trains:
        return
    _check_whole(file, checkpoint)
    best = RunFolder.around(file).best
    if best.exists() and not validates(hparams, data):
        raise ValueError(
            f"Validations of this run have chosen {best}, which would be tested instead of the "
            "last step: leave --trainer.limit_val_batches 0 out, or move that file away."
        )
    images = len(data.train_files)
    # Lightning's key; earlier versions kept nothing.
    state = checkpoint.get(type(data).__qualname__)
    before = state.get("train_images", images) if isinstance(state, Mapping) else images
    if images != before:
        raise ValueError(
            f"The run was started with {count(before, 'training image')}, and there are "
            f"{images} now, which would come in another order: restore them, or start a new run."
        )
    done, end = int(checkpoint["global_step"]), steps_of_run(hparams, images)
    if done > end:
        name = "max_epochs" if hparams.trainer.max_steps is None else "max_steps"
        raise ValueError(
            f"--trainer.{name} {getattr(hparams.trainer, name)} would end the run at step {end}, "
            f"and {done} are done: give more."
        )


def _check_whole(file: Path, checkpoint: Mapping[str, Any]) -> None:
    """Checks that a checkpoint has everything needed to resume training, undamaged."""
    if "optimizer_states" not in checkpoint:
        raise ValueError(
            f"{file} is of a run that trained nothing, and with these settings there is something "
            "to train: start a new run."
        )
    needed = ("optimizer_states", "loops", "pytorch-lightning_version")
    if lacking := [name for name in needed if not checkpoint.get(name)]:
        raise ValueError(
            f"{file} has no {' and no '.join(lacking)}, without which a run does not go on, but "
            "begins again: put the whole checkpoint back, or start a new run with "
            f"--backbone.weights {file}."
        )
    if wrong := _not_as(_position(), checkpoint["loops"], "loops"):
        raise ValueError(
            f"{file} is damaged: its {wrong}. Put the whole checkpoint back, remove it to go on "
            f"from the one before, or start a new run with --backbone.weights {file}."
        )
    check_weights(file, checkpoint, optimizer=True)


def _position() -> dict[str, Any]:
    """Returns Lightning's state of the training loop before training begins."""
    silent: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False}
    silent |= {
        f"enable_{what}": False for what in ("checkpointing", "progress_bar", "model_summary")
    }
    trainer = pl.Trainer(**silent, plugins=[LightningEnvironment()])
    return {"fit_loop": trainer.fit_loop.state_dict()}


def _not_as(expected: Any, found: Any, name: str) -> str:
    """Describes the first value of an unexpected type or below zero; empty if all are sound."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        entries = ((each, expected[each], found.get(each)) for each in expected)
        wrong = (_not_as(kind, value, f"{name}.{each}") for each, kind, value in entries)
        return next(filter(None, wrong), "")
    sound = isinstance(found, type(expected)) and not (isinstance(found, int) and found < 0)
    return "" if sound else f"{name} is {reprlib.repr(found)}"


def chooses_anew(agent: Agent, data: ImageDataModule, checkpoint: Mapping[str, Any]) -> bool:
    """Returns whether validations now measure differently than before; warns by which settings.

    Numbers from before and after then do not compare: keeping or replacing the best checkpoint by
    them would say nothing about how good it is.

    Args:
        agent: built from the settings.
        data: its images listed.
        checkpoint: see `check_continues`.
    """
    changed = remeasured(agent.settings, checkpoint["hyper_parameters"])
    judged = agent.trains and validates(agent.settings, data)
    if not changed or agent.monitor is None or not judged:
        return False
    rank_zero_warn(
        f"Earlier values of {agent.monitor[0]} do not compare with later ones, with another "
        f"--{', --'.join(changed)}: the best checkpoint is chosen anew."
    )
    return True


# Groups of settings that do not change the loss.
_BESIDE_THE_LOSS = {"run", "data", "backbone", "optim", "trainer", "logger", "callbacks", "probe"}


def changes_loss(hparams: Hparams, checkpoint: Mapping[str, Any]) -> bool:
    """Returns whether the loss has changed, if gradient agreement is measured; warns if so.

    The averages from before then say nothing about the gradients to come.

    Args:
        hparams: resolved for the data.
        checkpoint: see `check_continues`.
    """
    paths = [leaf.path for leaf, _ in given_anew(hparams, checkpoint["hyper_parameters"])]
    changed = [path for path in paths if path.partition(".")[0] not in _BESIDE_THE_LOSS]
    switch = "callbacks.gradient_agreement.enabled"
    if not changed or unmet(hparams, switch) or not get_leaf(hparams, switch):
        return False
    rank_zero_warn(
        f"Earlier gradients say nothing about later ones, with another --{', --'.join(changed)}: "
        "their agreement is measured anew."
    )
    return True
