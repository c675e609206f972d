"""Finds out whether evaluation images were trained on, by a run or by those its weights are from.

If so, its numbers say little about other images.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agents.sources import build_source
from config.hparams import Hparams
from config.lookup import read_settings
from config.resolve import resolve
from config.settings_tree import update
from datamodules.base import ImageDataModule
from datamodules.listing import places
from datamodules.reading import ImageItem
from utils.run_folder import RunFolder, named_run


def is_transductive(data: ImageDataModule, hparams: Hparams) -> bool:
    """Returns whether a run, or one that its weights come from, trained on evaluation images.

    Args:
        data: its images listed.
        hparams: resolved.
    """
    weights = (hparams.backbone.weights, hparams.segmentation.head_weights)
    named = (named_run(each, hparams.run.dir) for each in weights)
    runs = {run.path: run for run in named if run}.values()
    if data.transductive or any(run.read_summary().get("transductive") for run in runs):
        return True
    judged = places(data.judged_files) if runs else set()
    return any(judged & places(_images_behind(run, hparams.run.dir)) for run in runs)


def _images_behind(run: RunFolder | None, runs_dir: str) -> Iterator[ImageItem]:
    """Yields the training images of a run and of those its weights come from, if still there."""
    known: set[Path] = set()
    while run is not None and run.path not in known:
        known.add(run.path)
        try:
            hparams = resolve(update(Hparams(), read_settings(run.path), str(run.path)))
            source = build_source(hparams)
            if source.root.exists():  # else generated images would be drawn
                yield from source.files(source.split)
        except (OSError, ValueError):  # moved since, or of another version
            return
        run = named_run(hparams.backbone.weights, runs_dir)
