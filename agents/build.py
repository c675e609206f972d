"""From hparams to the parts of a run: the only place that knows which setting goes where."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytorch_lightning as pl

from config import names
from config.hparams import Hparams
from datamodules.base import ImageDataModule
from datamodules.loading import Loading
from models.backbones.base import Backbone
from models.backbones.loading import load_weights
from utils.console import console
from utils.weights import read_checkpoint


def build_data(hparams: Hparams) -> ImageDataModule:
    """Builds the chosen data set as the task loads it."""
    data, part = hparams.data, names.DATASETS[hparams.data.name]
    loading = Loading(
        data.batch_size,
        data.num_workers or 0,
        hparams.run.seed,
        hparams.trainer.chunk_size,
        hparams.trainer.limit_train_batches,
    )
    settings = {leaf: getattr(data, leaf) for leaf in part.settings}
    source = part.load()(root=data.root, **settings)
    module: ImageDataModule = names.TASKS[hparams.task].load().data(source, hparams, loading)
    return module


def build_backbone(hparams: Hparams, load: bool = True) -> Backbone:
    """Builds the chosen backbone, loads its weights and freezes what is to be frozen.

    Args:
        hparams: settings.
        load: False leaves it at random, for a checkpoint to fill.
    """
    settings, part = hparams.backbone, names.BACKBONES[hparams.backbone.name]
    chosen = {leaf: getattr(settings, leaf) for leaf in part.settings}
    chosen = {leaf: value for leaf, value in chosen.items() if value is not None}
    backbone: Backbone = part.load()(image_size=hparams.data.image_size, **chosen)
    report = load_weights(backbone, settings.weights, hparams.run.dir) if load else None
    if report:
        console.info("%s", report)
    if settings.freeze:
        backbone.freeze(settings.unfreeze_last)
    return backbone


def build_agent(hparams: Hparams, load: bool = True) -> pl.LightningModule:
    """Builds the task's agent around the chosen backbone; `load` as in `build_backbone`."""
    agent: pl.LightningModule = names.TASKS[hparams.task].load().build(hparams, load)
    return agent


def build_figure_callbacks(hparams: Hparams) -> list[pl.Callback]:
    """Builds the callbacks that the task has and that are switched on."""
    built = []
    for name, part in names.CALLBACKS.items():
        settings = dataclasses.asdict(getattr(hparams.callbacks, name))
        active = f"callbacks.{name}" in names.TASKS[hparams.task].settings
        if settings.pop("enabled") and active:
            built.append(part.load()(**settings))
    return built


def check_fits(agent: pl.LightningModule, checkpoint: Path) -> None:
    """Compares a checkpoint with the agent it is to be loaded into.

    Raises:
        ValueError: another architecture; names the first difference.
    """
    saved = {key: value.shape for key, value in read_checkpoint(checkpoint)["state_dict"].items()}
    own = {key: value.shape for key, value in agent.state_dict().items()}
    for key in sorted(saved.keys() | own.keys()):
        if saved.get(key) != own.get(key):
            there, here = (str(tuple(s[key])) if key in s else "absent" for s in (saved, own))
            raise ValueError(
                f"{checkpoint} is of another architecture: {key} is {there} there and {here} with "
                "these settings. Resume without changing --backbone or projector sizes."
            )
