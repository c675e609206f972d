"""Writes the README.md beside an exported network: what it is, its scores, how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from config.errors import ConfigError
from config.hparams import Hparams
from config.length import images_of_step
from config.lookup import find_run, read_settings
from utils.files import write_atomically
from utils.nested import flat
from utils.page import render
from utils.run_folder import RunFolder
from utils.text import TRANSDUCTIVE, count, format_result

# Origin and licence of published weights.
_LICENCES = {
    "pretrained": "those that timm or torchvision publish: see the model's page there",
    "dino": "DINO's: Apache 2.0 (github.com/facebookresearch/dino)",
    "barlow_twins": "Barlow Twins': see the LICENSE of github.com/facebookresearch/barlowtwins",
    "coco": "torchvision's: BSD 3-Clause (github.com/pytorch/vision)",
}
_SCORES = ("test/", "evaluate/", "val/")


def write_card(file: Path, folder: RunFolder, hparams: Hparams, **about: Any) -> Path:
    """Writes README.md beside an exported file.

    Args:
        file: what was exported.
        folder: the run's, for its results.
        hparams: its settings.
        about: further values of `utils/templates/model_card.md`, by name.

    Returns:
        The card.
    """
    summary = folder.read_summary()
    protocol = [f"{key} {summary[key]}" for key in ("protocol", "inference") if key in summary]
    commit = folder.read_environment().get("git_commit")
    data = hparams.data
    text = render(
        "model_card.md",
        name=folder.name,
        file=file.name,
        backbone=hparams.backbone.name,
        task=hparams.task,
        data=data.name,
        split=data.split,
        image_size=data.image_size,
        batch=images_of_step(hparams),
        seed=hparams.run.seed,
        steps=count(summary.get("steps", 0), "step"),
        transductive=TRANSDUCTIVE if summary.get("transductive") else None,
        protocol=", ".join(protocol) or "measured while training",
        numbers={
            key: format_result(value)
            for key, value in summary.items()
            if key.startswith(_SCORES) and isinstance(value, float)
        },
        licence=licence(hparams),
        commit=f", at commit {commit}" if commit else "",
        **about,
    )
    card = file.with_name("README.md")
    write_atomically(card, text)
    return card


def licence(hparams: Hparams) -> str:
    """Says which weights a run started from, traced back through the runs before it."""
    weights, told = hparams.backbone.weights, "They began"
    seen: set[str] = set()
    while weights.startswith("run:") and weights not in seen:
        seen.add(weights)
        told += f" with those of the run {weights.removeprefix('run:')}, which began"
        try:
            settings = read_settings(find_run(weights, hparams.run.dir))
        except ConfigError:
            return f"{told} with unknown weights: its folder is gone."
        weights = str(flat(settings).get("backbone.weights", "none"))
    if weights == "none":
        return f"{told} at random: they are yours."
    of_file = f"those of the file {Path(weights).name}, whose licence holds"
    return f"{told} with {_LICENCES.get(weights, of_file)}."
