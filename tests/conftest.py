"""Tiny data sets in the real layouts, and runs of the whole program on them."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_origin

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from PIL import Image
from pytorch_lightning.plugins import MixedPrecision

from callbacks.interruption import Interruption
from config import names
from config.hparams import Hparams
from config.resolve import choose_names
from config.rules import no_effect, settings_of
from config.settings_tree import base_types, leaves, set_leaf
from datamodules.shapes import generate
from main import main
from utils.console import console
from utils.imports import load


@pytest.fixture(autouse=True)
def messages_reach_caplog(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a run, from which on our messages go to the screen alone."""
    if "caplog" in request.fixturenames:
        monkeypatch.setattr(console, "propagate", True)


@pytest.fixture(scope="session", autouse=True)
def signals_are_heard() -> None:
    """Also where `nohup` or a script in the background began the tests, which ignore them then."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def processes_end() -> Iterator[None]:
    """Those that load images do with what loads them: nothing waits for a test of before."""
    before = set(multiprocessing.active_children())
    yield
    left = set(multiprocessing.active_children()) - before
    for process in left:
        process.join(20)  # torch waits five seconds, and a busy machine may need more
    assert not [process for process in left if process.is_alive()]


PACKAGES = ("agents", "callbacks", "config", "datamodules", "models", "utils")
TINY = {
    "run.seed": 1,
    "data.image_size": 32,
    "data.batch_size": 8,
    "data.num_workers": 0,
    "backbone.patch_size": 16,
    "backbone.depth": 2,
    "backbone.embed_dim": 24,
    "barlow_twins.projector_dim": 16,
    "barlow_twins.hidden_dim": 16,
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
    "callbacks.gradient_agreement.enabled": "false",
    "callbacks.online_probe.enabled": "false",
    "callbacks.dense_knn.enabled": "false",
    "callbacks.embeddings.enabled": "false",
    "callbacks.report.enabled": "false",
    "callbacks.segmentation_predictions.enabled": "false",
    "callbacks.class_iou.enabled": "false",
    "callbacks.confusion_matrix.enabled": "false",
    "lejepa.projector_dim": 16,
    "lejepa.hidden_dim": 20,
    "lejepa.views": 3,
    "lejepa.slices": 8,
    "dino.out_dim": 24,
    "dino.hidden_dim": 20,
    "dino.bottleneck_dim": 12,
    "dino.local_crops_number": 2,
    "dino.local_crop_size": 16,
}


def options(settings: dict[str, Any]) -> list[str]:
    return [
        word
        for key, value in settings.items()
        for word in (f"--{key}", *map(str, value if isinstance(value, tuple) else (value,)))
    ]


def tiny(changed: dict[str, Any]) -> dict[str, Any]:
    """Tiny settings that a run with `changed` reads, and these; `...` takes one away."""
    settings = {key: value for key, value in {**TINY, **changed}.items() if value is not ...}
    hparams = parsed(options({key: settings[key] for key in settings if key in changed}))
    return {k: v for k, v in settings.items() if k in changed or not no_effect(hparams, k)}


def parsed(words: list[str]) -> Hparams:
    """The settings of a command line, whether or not they are possible."""
    hparams = Hparams()
    known = {leaf.path: leaf for leaf in leaves(hparams)}
    for path, given in setting_words(words).items():
        if path in known:
            value = yaml.safe_load(given[0]) if len(given) == 1 else given
            is_list = list in (get_origin(kind) for kind in base_types(known[path].annotation))
            set_leaf(hparams, path, [value] if is_list and not isinstance(value, list) else value)
    return choose_names(hparams)


def setting_words(words: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            found[path := word[2:]] = []
        else:
            found[path].append(word)
    return found


def callback_of(name: str, **changed: Any) -> Any:
    """A callback with its default settings, at every opportunity, and what is changed."""
    settings = settings_of(Hparams(), f"callbacks.{name}.enabled")
    often = {key: 1 for key in settings if key.startswith("every_n_")}
    return load(names.CALLBACKS[name].target)(**settings | often | changed)


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """Lets the kernel refuse what would make a file larger, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 8 validation images."""
    root = tmp_path_factory.mktemp("shapes")
    generate(root, num_train=24, num_val=8)
    return root


@pytest.fixture
def train(tmp_path: Path, shapes_root: Path) -> Callable[..., tuple[int, Path]]:
    """Runs `main` on tiny settings; returns exit code and run folder.

    A readout that fails ends no run, but it ends a test, unless that says it may.
    """

    def run(
        name: str = "run", *words: str, may_fail: bool = False, **changed: Any
    ) -> tuple[int, Path]:
        place = {"run.dir": tmp_path / "runs", "run.name": name, "data.root": shapes_root}
        settings = tiny({**place, **{key.replace("__", "."): v for key, v in changed.items()}})
        code, folder = main([*options(settings), *words]), tmp_path / "runs" / name
        if code == 0 and not may_fail:
            assert summary(folder)["readout_failures"] == {}
        return code, folder

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


@contextmanager
def stopped_after(step: int, number: signal.Signals = signal.SIGINT) -> Iterator[None]:
    """Sends the signal to the run inside when it has taken so many steps."""
    original = Interruption.on_train_batch_end

    def ask(self: Interruption, trainer: pl.Trainer, *rest: Any) -> None:
        if trainer.global_step == step:
            os.kill(os.getpid(), number)
        original(self, trainer, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Interruption, "on_train_batch_end", ask)
        yield


def float16_trainer(scaler: torch.amp.GradScaler, folder: Path, **more: Any) -> pl.Trainer:
    """Returns Lightning's trainer of a run in 16-mixed on a CPU, which shows and keeps nothing."""
    return pl.Trainer(
        accelerator="cpu",
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **more,
    )


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is printed in our own words, a line each."""
    lines: list[str] = []
    for level in ("info", "warning"):
        monkeypatch.setattr(console, level, lambda text, *args: lines.append(text % args))
    return lines


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
