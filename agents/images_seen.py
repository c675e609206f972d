"""Whether the images that judge a run have been trained on, by it or by those its weights are from.

A network knows what it was trained on: numbers on these images say little of others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from agents.sources import build_source
from config.convert import update
from config.hparams import Hparams
from config.lookup import read_settings
from config.resolve import resolve
from datamodules.base import ImageDataModule
from datamodules.reading import ImageItem
from utils.run_folder import named_run


def is_transductive(data: ImageDataModule, hparams: Hparams) -> bool:
    """Returns whether training, or that of its weights, saw images that evaluation uses.

    Args:
        data: listed.
        hparams: resolved.
    """
    weights = [hparams.backbone.weights, hparams.segmentation.head_weights]
    runs = [run for name in weights if (run := named_run(name, hparams.run.dir))]
    if data.transductive or any(run.read_summary().get("transductive") for run in runs):
        return True
    judged = _places(data.judged_files) if runs else set()
    return any(judged & _places(_images_behind(name, hparams.run.dir)) for name in weights)


def _images_behind(weights: str, runs_dir: str) -> Iterator[ImageItem]:
    """Yields the training images of the run of these weights, and of those it goes back to.

    As far as their data is still there.
    """
    known: set[Path] = set()
    while (run := named_run(weights, runs_dir)) is not None and run.path not in known:
        known.add(run.path)
        try:
            hparams = resolve(update(Hparams(), read_settings(run.path), str(run.path)))
            source = build_source(hparams)
            if source.root.exists():  # else generated images would be drawn
                yield from source.files(source.split)
        except (OSError, ValueError):  # moved since, or of another version
            return
        weights = hparams.backbone.weights


def _places(images: Iterable[ImageItem]) -> set[ImageItem]:
    """Returns images by where they really lie: data sets may name one file in several ways."""
    real = cache(Path.resolve)
    return {real(each.parent) / each.name if isinstance(each, Path) else each for each in images}
