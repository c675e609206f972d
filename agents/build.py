"""From hparams to the parts of a run: the only place that knows which setting goes where."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytorch_lightning as pl

from config import names
from config.convert import get_leaf
from config.hparams import Hparams
from datamodules.base import ImageDataModule, ImageSource, LabelledSource
from datamodules.labelled import LabelledFiles, labelled_files
from datamodules.loading import Loading
from datamodules.seeding import seeded
from models.backbones.base import Backbone
from models.backbones.weights import load_weights
from models.fusions.attention_fusion import AttentionFusion, attention_heads, attention_request
from models.fusions.base import Fusion
from utils.checkpoints import read_checkpoint
from utils.console import console


def build_source(hparams: Hparams) -> ImageSource:
    """Builds the chosen data set: where images and labels are."""
    part = names.DATASETS[hparams.data.name]
    settings = {leaf: getattr(hparams.data, leaf) for leaf in part.settings}
    source: ImageSource = part.load()(root=hparams.data.root, **settings)
    return source


def data_sets(kind: type) -> str:
    """Names the data sets of a kind."""
    return ", ".join(n for n, part in names.DATASETS.items() if issubclass(part.load(), kind))


def labelled(source: ImageSource, name: str) -> LabelledSource:
    """Returns `source` when its images have one class each.

    Raises:
        ValueError: they have none.
    """
    if not isinstance(source, LabelledSource):
        raise ValueError(
            f"The images of {name} have no classes; probes work with {data_sets(LabelledSource)}."
        )
    return source


def labelled_finder(source: ImageSource, hparams: Hparams) -> Callable[[], LabelledFiles | None]:
    """Returns what lists labelled training images, to look at what is being learnt.

    Those of `probe.data`, listed at once, so that a mistake stops the run before it starts; else
    those trained on, listed when they are looked at, or None when these have no labels.

    Raises:
        FileNotFoundError, ValueError: `probe.data` is not there or has no labels.
    """
    other = hparams.probe.data
    if other.name is None:
        return partial(_own_labels, source)
    chosen = names.DATASETS[other.name].load()(root=other.root or f"data/{other.name}")
    found = labelled_files(labelled(chosen, f"--probe.data.name {other.name}"), "train")
    return lambda: found


def _own_labels(source: ImageSource) -> LabelledFiles | None:
    if not isinstance(source, LabelledSource):
        return None
    try:
        return labelled_files(source, "train")
    except ValueError:
        return None


def build_data(hparams: Hparams) -> ImageDataModule:
    """Builds the chosen data set as the task loads it."""
    data = hparams.data
    loading = Loading(
        data.batch_size,
        data.num_workers or 0,
        hparams.run.seed,
        hparams.trainer.chunk_size,
        hparams.trainer.limit_train_batches,
    )
    task = names.TASKS[hparams.task].load()
    module: ImageDataModule = task.data(build_source(hparams), hparams, loading)
    return module


def build_backbone(hparams: Hparams, load: bool = True) -> Backbone:
    """Builds the chosen backbone, loads its weights and freezes what is to be frozen.

    Args:
        hparams: settings.
        load: False leaves it at random, for a checkpoint to fill.
    """
    settings = hparams.backbone
    backbone = _architecture(hparams)
    report = load_weights(backbone, settings.weights, hparams.run.dir) if load else None
    if report:
        console.info("%s", report)
    if settings.freeze:
        backbone.freeze(settings.unfreeze_last)
    return backbone


def _architecture(hparams: Hparams) -> Backbone:
    settings, part = hparams.backbone, names.BACKBONES[hparams.backbone.name]
    chosen = {leaf: getattr(settings, leaf) for leaf in part.settings}
    chosen = {leaf: value for leaf, value in chosen.items() if value is not None}
    backbone: Backbone = part.load()(image_size=hparams.data.image_size, **chosen)
    return backbone


def build_fusion(
    hparams: Hparams, backbone: Backbone, num_classes: int
) -> tuple[AttentionFusion, tuple[int, ...]]:
    """Builds the chosen fusions around a head on `backbone`.

    Returns:
        Them, none by default, and the channels of the maps that the head gets.

    Raises:
        ValueError: the backbone has not the attention they need; or a block outside the network.
    """
    settings, channels = hparams.segmentation, backbone.map_channels
    if not settings.fusion and not settings.attention_loss:
        return AttentionFusion(), channels
    request = attention_request(
        backbone, settings.attention_blocks, all_pairs="fusion2" in settings.fusion
    )
    heads = attention_heads(backbone, request)
    fusions: dict[str, Fusion] = {}
    for name in settings.fusion:
        part = names.FUSIONS[name]
        options = {leaf.removeprefix("fusion_"): getattr(settings, leaf) for leaf in part.settings}
        fusions[name] = part.load()(channels, backbone.map_strides, num_classes, heads, **options)
        channels = fusions[name].channels
    twin = None
    if settings.fusion_control == "random_init":
        with seeded(hparams.run.seed):  # the head starts as it would without a control
            twin = _architecture(hparams)
    return AttentionFusion(fusions, request, settings.fusion_control, twin), channels


def build_agent(hparams: Hparams, load: bool = True) -> pl.LightningModule:
    """Builds the task's agent around the chosen backbone; `load` as in `build_backbone`."""
    agent: pl.LightningModule = names.TASKS[hparams.task].load().build(hparams, load)
    return agent


def build_figure_callbacks(hparams: Hparams) -> list[pl.Callback]:
    """Builds the callbacks that the task has and that are switched on."""
    built = []
    for name, part in names.CALLBACKS.items():
        settings = dataclasses.asdict(getattr(hparams.callbacks, name))
        settings |= {path.rpartition(".")[2]: get_leaf(hparams, path) for path in part.settings}
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
