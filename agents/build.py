"""Builds the parts of a run from its settings: data, agent, callbacks.

No agent is known by name here: tasks, data sets and callbacks are those of `config/names.py`.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import pytorch_lightning as pl

from agents.backbone import build_backbone
from agents.base import Agent
from agents.sources import probe_source
from callbacks.guard import Guard
from config import names
from config.hparams import Hparams
from config.rules import get_leaf, settings_of, unmet
from datamodules.base import ImageDataModule
from datamodules.loading import Loading
from datamodules.self_supervised import ViewsDataModule
from datamodules.sources import ImageSource
from utils.device import best_device
from utils.imports import load
from utils.memory import is_out_of_memory
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
