"""Builds the parts of a run from its settings: data, agent, callbacks.

No agent is known by name here: tasks, data sets and callbacks are those of `config/names.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl

from agents.backbone import build_backbone
from agents.base import Agent
from agents.sources import probe_source
from callbacks.guard import Guard
from callbacks.inspection import Classifies
from config import names
from config.hparams import Hparams
from config.rules import as_typed, get_leaf, settings_of, unmet
from config.validation import check_kept, given_anew
from datamodules.base import ImageDataModule
from datamodules.loading import Loading
from datamodules.self_supervised import ViewsDataModule
from datamodules.sources import ImageSource
from utils.checkpoint_io import broken, check_weights
from utils.checkpoints import map_run_checkpoint
from utils.device import best_device
from utils.imports import load
from utils.memory import is_out_of_memory
from utils.run_folder import RunFolder
from utils.text import one_line


def agent_class(task: str) -> type[Agent]:
    """Returns the agent class of a task.

    Raises:
        ValueError: the class is no `Agent`, or lacks a method; names which.
    """
    found = load(names.TASKS[task])
    if not (isinstance(found, type) and issubclass(found, Agent)):
        raise ValueError(f"Task {task}: {names.TASKS[task]} is no subclass of agents.base.Agent.")
    if lacking := sorted(found.__abstractmethods__):
        raise ValueError(f"Task {task}: {names.TASKS[task]} lacks {', '.join(lacking)}.")
    return found


def build_loading(hparams: Hparams) -> Loading:
    """Returns how to load batches; until images are counted, the batch size may be `auto`."""
    data, trainer = hparams.data, hparams.trainer
    return Loading(
        data.batch_size if isinstance(data.batch_size, int) else None,
        data.num_workers or 0,
        hparams.run.seed,
        trainer.chunk_size if isinstance(trainer.chunk_size, int) else None,
        trainer.limit_train_batches,
        best_device(trainer.accelerator).type == "cuda",
    )


def build_data(hparams: Hparams, source: ImageSource) -> ImageDataModule:
    """Builds the data set as the task loads it.

    Raises:
        FileNotFoundError, ValueError: the labelled images for readouts are missing.
    """
    data = agent_class(hparams.task).data(source, hparams, build_loading(hparams))
    if other := probe_source(hparams):  # which only pretraining has
        cast(ViewsDataModule, data).use_labels_of(other)
    return data


def build_agent(hparams: Hparams, source: ImageSource, loaded: bool = True) -> Agent:
    """Builds the task's agent around the chosen backbone.

    Args:
        hparams: resolved settings.
        source: the data set.
        loaded: False keeps random weights, which a checkpoint will replace.

    Raises:
        ValueError: the network does not fit into memory; see also `load_weights`.
    """
    try:
        backbone = build_backbone(hparams, loaded)
        agent = agent_class(hparams.task).build(hparams, backbone, source)
        if loaded:
            agent.load_weights()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(
            f"A network of these settings does not fit into memory ({one_line(str(error), 200)}). "
            "Choose smaller sizes for --backbone, projectors and heads."
        ) from error
    return agent


def build_callbacks(hparams: Hparams, guard: Guard, evaluating: bool = False) -> list[pl.Callback]:
    """Builds the task's callbacks that are switched on.

    One without settings in `CallbackHparams` is always on. All of them only observe: callbacks that
    steer a run are built in `agents/steering.py`.

    Args:
        hparams: resolved settings.
        guard: wraps each of them, so that none ends the run.
        evaluating: whether to build those of --evaluate instead of those of a training.
    """
    switchable = {group.name for group in dataclasses.fields(hparams.callbacks)}
    built: list[pl.Callback] = []
    for name, callback in names.CALLBACKS.items():
        if hparams.task not in (callback.evaluates if evaluating else callback.tasks):
            continue
        switch, settings = f"callbacks.{name}.enabled", {}
        if name in switchable:
            if unmet(hparams, switch) or not get_leaf(hparams, switch):
                continue
            settings = settings_of(hparams, switch)
        built.append(guard.around(name, load(callback.target)(**settings)))
    return built


def check_fits(agent: Agent, file: Path, checkpoint: Mapping[str, Any]) -> None:
    """Checks that a checkpoint can be loaded into an agent.

    Args:
        agent: built from the settings.
        file: the checkpoint's, for the message.
        checkpoint: its content.

    Raises:
        ValueError: the architecture or the classes differ; names the first difference. A tensor
            that is empty here takes any length. Or weights are NaN or infinite.
    """
    _check_classes(agent, file, checkpoint)
    saved = {key: value.shape for key, value in checkpoint["state_dict"].items()}
    own = {key: value.shape for key, value in agent.state_dict().items()}
    for key in sorted(saved.keys() | own.keys()):
        in_both = key in saved and key in own
        fills = in_both and own[key][:1] == (0,) and saved[key][1:] == own[key][1:]
        if saved.get(key) != own.get(key) and not fills:
            there, here = (str(tuple(s[key])) if key in s else "absent" for s in (saved, own))
            raise ValueError(
                f"{file} is of another architecture: {key} is {there} there and {here} with "
                f"these settings. {_as_they_were(agent, checkpoint)}"
            )
    check_weights(file, checkpoint)


def check_best(agent: Agent, file: Path) -> None:
    """Checks that the best checkpoint, which will be tested, belongs to the run.

    A damaged one is skipped: its readers fall back on another.

    Args:
        agent: built from the settings, which the last checkpoint fits.
        file: the last checkpoint.

    Raises:
        ValueError: it belongs to another run; says how they differ.
    """
    best = RunFolder.around(file).best
    if not (agent.trains and best.exists()) or broken(best):
        return
    saved = map_run_checkpoint(best)
    try:
        check_kept(agent.settings, saved["hyper_parameters"])
        check_fits(agent, best, saved)
    except ValueError as error:
        raise ValueError(
            f"{best} belongs to another run than {file.name}: put the right one back, or remove "
            f"it, and the best of the validations to come takes its place. ({error})"
        ) from error


# Groups of settings that do not shape a network, and the exceptions in them that do.
_BESIDE_NETWORK = ("run", "data", "optim", "trainer", "logger", "callbacks", "probe")
_SHAPES_NETWORK = ("data.name", "data.root", "data.image_size")


def _as_they_were(agent: Agent, checkpoint: Mapping[str, Any]) -> str:
    """Says which settings to put back so that the network is that of its checkpoint."""
    changed = [
        f"--{leaf.path} {as_typed(before)} (not {as_typed(leaf.value)})"
        for leaf, before in given_anew(agent.settings, checkpoint["hyper_parameters"])
        if leaf.path in _SHAPES_NETWORK or leaf.path.partition(".")[0] not in _BESIDE_NETWORK
    ]
    default = "--backbone, --data.image_size and sizes of projectors and heads"
    return f"Leave {', '.join(changed) or default} as it was."


def _check_classes(agent: Agent, file: Path, checkpoint: Mapping[str, Any]) -> None:
    known = checkpoint.get("classes")
    if known is None or not isinstance(agent, Classifies):
        return
    for label, (there, here) in enumerate(zip_longest(known, agent.classes, fillvalue="absent")):
        if there != here:
            raise ValueError(
                f"{file} is of other classes: label {label} is {there} there and {here} in the "
                "data set now. Restore its list of classes, or train anew."
            )
