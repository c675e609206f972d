"""Builds data sets from the settings, and checks that they have the labels that a task needs."""

from __future__ import annotations

from config import names
from config.hparams import Hparams
from config.resolve import default_root
from config.rules import settings_of
from datamodules.sources import ImageSource, LabelledSource, MaskedSource
from utils.imports import load


def build_source(hparams: Hparams) -> ImageSource:
    """Builds the chosen data set: where images and labels are."""
    source: ImageSource = load(names.DATASETS[hparams.data.name])(
        root=hparams.data.root, **settings_of(hparams, "data.name")
    )
    return source


def probe_source(hparams: Hparams) -> LabelledSource | None:
    """Builds the data set that `probe.data` names; None where it names none.

    Raises:
        ValueError: its images have no classes.
    """
    other = hparams.probe.data
    if other.name is None:
        return None
    root = other.root or default_root(other.name)
    source: ImageSource = load(names.DATASETS[other.name])(root=root)
    source.root_option = "--probe.data.root"
    return labelled(source, f"--probe.data.name {other.name}")


def labelled(source: ImageSource, what: str) -> LabelledSource:
    """Returns `source` when its images have one class each.

    Raises:
        ValueError: they have none; the message begins with `what`.
    """
    if not isinstance(source, LabelledSource):
        known = _data_sets(LabelledSource)
        raise ValueError(f"{what}: these images have no classes; probes work with {known}.")
    return source


def masked(source: ImageSource, what: str) -> MaskedSource:
    """Returns `source` when its images have masks.

    Raises:
        ValueError: they have none; the message begins with `what`.
    """
    if not isinstance(source, MaskedSource):
        known = _data_sets(MaskedSource)
        raise ValueError(f"{what} has no masks; segmentation works with {known}.")
    return source


def _data_sets(kind: type) -> str:
    return ", ".join(
        name for name, target in names.DATASETS.items() if issubclass(load(target), kind)
    )
