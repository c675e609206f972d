"""Tiny data sets in the real layouts, and runs of the whole program on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.shapes import generate
from main import main

TINY = {
    "run.seed": 1,
    "data.image_size": 32,
    "data.batch_size": 8,
    "data.num_workers": 0,
    "backbone.patch_size": 16,
    "backbone.depth": 2,
    "backbone.embed_dim": 24,
    "barlow_twins.projector_dim": 16,
    "trainer.max_epochs": 2,
    "trainer.accelerator": "cpu",
    "logger.mode": "disabled",
    "callbacks.attention_maps.enabled": "false",
    "callbacks.attention_quality.enabled": "false",
    "callbacks.cross_correlation.enabled": "false",
    "callbacks.learning_curves.enabled": "false",
    "callbacks.views.enabled": "false",
    "callbacks.effective_receptive_field.enabled": "false",
    "callbacks.feature_maps.enabled": "false",
    "callbacks.online_probe.enabled": "false",
    "callbacks.embeddings.enabled": "false",
    "callbacks.report.enabled": "false",
}
# For backbones that are no ViT.
NO_VIT_SIZES = dict.fromkeys(
    ("backbone__patch_size", "backbone__depth", "backbone__embed_dim"), ...
)
TINY_DINO = {
    "dino.out_dim": 24,
    "dino.hidden_dim": 20,
    "dino.bottleneck_dim": 12,
    "dino.local_crops_number": 2,
    "dino.local_crop_size": 16,
}
# What the other tasks do not read.
PRETRAINING_ONLY = (
    "barlow_twins.projector_dim",
    "callbacks.cross_correlation.enabled",
    "callbacks.online_probe.enabled",
    "callbacks.embeddings.enabled",
)
INSIDE = tuple(
    f"callbacks.{name}.enabled"
    for name in (
        "attention_maps",
        "attention_quality",
        "views",
        "effective_receptive_field",
        "feature_maps",
    )
)
NO_SEGMENTATION_FIGURES = {
    f"callbacks.{name}.enabled": "false"
    for name in ("segmentation_predictions", "class_iou", "confusion_matrix")
}


def options(settings: dict[str, Any]) -> list[str]:
    return [
        word
        for key, value in settings.items()
        for word in (f"--{key}", *map(str, value if isinstance(value, tuple) else (value,)))
    ]


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 8 validation images."""
    root = tmp_path_factory.mktemp("shapes")
    generate(root, num_train=24, num_val=8)
    return root


@pytest.fixture
def train(tmp_path: Path, shapes_root: Path) -> Callable[..., tuple[int, Path]]:
    """Runs `main` on tiny settings; returns exit code and run folder."""

    def run(name: str = "run", *words: str, **changed: Any) -> tuple[int, Path]:
        settings: dict[str, Any] = {
            **TINY,
            "run.dir": tmp_path / "runs",
            "run.name": name,
            "data.root": shapes_root,
        }
        task = changed.get("task", "barlow_twins")
        unread = {
            "barlow_twins": (),
            "dino": PRETRAINING_ONLY[:2],
            "dino_twins": PRETRAINING_ONLY[1:2],
            "segmentation": PRETRAINING_ONLY,
            "linear_probe": (*PRETRAINING_ONLY, *INSIDE),
        }
        for leaf in unread[task]:
            del settings[leaf]
        if task == "linear_probe":
            settings["callbacks.confusion_matrix.enabled"] = "false"
        if task in ("dino", "dino_twins"):
            settings |= TINY_DINO
        if task == "segmentation":
            settings |= NO_SEGMENTATION_FIGURES
        settings |= {key.replace("__", "."): value for key, value in changed.items()}
        settings = {key: value for key, value in settings.items() if value is not ...}
        return main([*options(settings), *words]), tmp_path / "runs" / name

    return run


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """20 unlabelled images, two of them not in RGB."""
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(20):
        pixels = rng.integers(0, 255, (40, 50, 3), np.uint8)
        image = Image.fromarray(pixels).convert("L" if index < 2 else "RGB")
        image.save(folder / ("deep" if index % 2 else ".") / f"{index:02d}.png")
    return folder


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def weights(folder: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(
        folder / "checkpoints" / name, weights_only=True, map_location="cpu"
    )["state_dict"]
    return state


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key
