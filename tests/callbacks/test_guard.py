"""No readout ends a run, whichever fails, wherever, and however; what steers a run still does."""

from __future__ import annotations

import inspect
import shutil
import weakref
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.loggers import CSVLogger

from callbacks.attention_maps import AttentionMaps
from callbacks.guard import Guard
from callbacks.report import Report
from callbacks.segmentation_predictions import SegmentationPredictions
from config import names
from datamodules.shapes import generate
from tests.conftest import assert_same, callback_of, summary, weights
from utils.imports import load

# A run of each has all there are.
TASKS = ("barlow_twins", "segmentation")
HOOKS = [name for name, _ in inspect.getmembers(Callback, inspect.isfunction) if name[0] != "_"]


def of_task(task: str) -> list[str]:
    return [name for name, each in names.CALLBACKS.items() if task in each.tasks]


def all_on(task: str) -> dict[str, Any]:
    from config.hparams import CallbackHparams

    settings: dict[str, Any] = {"task": task, "data__val_fraction": 0.3}
    if task == "barlow_twins":
        settings["data__val_fraction"] = ...
    for name in of_task(task):
        group = getattr(CallbackHparams(), name, None)
        for leaf, value in (("enabled", "true"), ("every_n_epochs", 1), ("every_n_steps", 1)):
            if hasattr(group, leaf):
                settings[f"callbacks__{name}__{leaf}"] = value
    return settings


def breaking(error: Exception) -> Any:
    """A hook that opens a figure, draws random numbers, and fails."""

    def hook(*_: Any, **__: Any) -> None:
        plt.figure()
        torch.rand(3)
        raise error

    return hook


def test_every_callback_is_in_one_of_the_runs():
    assert {name for task in TASKS for name in of_task(task)} == set(names.CALLBACKS)


@pytest.mark.parametrize("task", TASKS)
def test_all_readouts_take_half_precision(train, task):
    code, folder = train("run", trainer__precision="bf16-mixed", **all_on(task))
    assert code == 0
    assert summary(folder)["readout_failures"] == {}


@pytest.mark.parametrize("task", TASKS)
def test_whatever_readout_fails_the_run_is_the_same_and_counts_it(train, monkeypatch, task, capsys):
    settings = {"backbone__drop_path": 0.3, "trainer__max_epochs": 1, **all_on(task)}
    off = {name: value for name, value in settings.items() if "callbacks__" not in name}
    code, plain = train("plain", **off)
    assert code == 0
    for name in of_task(task):
        kind = load(names.CALLBACKS[name].target)
        for hook in HOOKS:
            if getattr(kind, hook) is not getattr(Callback, hook):
                monkeypatch.setattr(kind, hook, breaking(RuntimeError(f"broken {name}.")))
    with pytest.warns(UserWarning, match="failed, training goes on") as said:
        code, folder = train("broken", may_fail=True, **settings)
    assert code == 0
    assert_same(weights(folder), weights(plain))
    failures = summary(folder)["readout_failures"]
    assert set(failures) == set(of_task(task))
    assert all(count > 0 for count in failures.values())
    assert not plt.get_fignums()
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name in of_task(task):
        assert sum(f"broken {name}." in str(each.message) for each in said) == 1
        assert f"{name} {failures[name]}x (RuntimeError: broken {name})" in printed


def test_a_report_that_fails_at_the_end_is_counted(train, monkeypatch):
    monkeypatch.setattr(Report, "write", breaking(OSError("no space left on device")))
    with pytest.warns(UserWarning, match="report failed"):
        code, folder = train(may_fail=True, trainer__max_epochs=1, callbacks__report__enabled=...)
    assert code == 0
    assert summary(folder)["readout_failures"] == {"report": 1}


def test_a_failure_is_said_once_a_kind_and_leaves_what_it_changed(recwarn):
    guard, state = Guard(), torch.get_rng_state()
    for number in range(3):
        assert guard.attempt("picture", lambda n=number: torch.rand(2) / {}[n]) is None
    guard.attempt("picture", lambda: int("no number"))
    assert guard.attempt("number", lambda: 7) == 7
    assert dict(guard.failures) == {"picture": 4}
    assert [str(w.message).split(": ")[0] for w in recwarn] == [
        "picture failed, training goes on"
    ] * 2
    assert torch.equal(torch.get_rng_state(), state)
    (line,) = guard.in_words()
    assert "picture 4x (KeyError: 0)" in line
    assert Guard().in_words() == []


def test_a_logger_that_is_lost_is_told_no_more(recwarn):
    told: list[str] = []

    class Telling(CSVLogger):
        def log_metrics(self, *_: Any) -> None:
            told.append("metrics")
            raise ConnectionResetError("Connection lost")

        def log_figure(self, *_: Any) -> None:
            told.append("figure")
            raise ValueError("no figure")

        def save(self) -> None:
            told.append("save")

    guard = Guard()
    logger: Any = guard.around_logger("elsewhere", Telling("nowhere"))
    for _ in range(3):
        logger.log_figure()
        logger.save()
    for _ in range(3):
        logger.log_metrics()
        logger.save()
    assert told == ["figure", "save"] * 3 + ["metrics"]
    assert dict(guard.failures) == {"elsewhere": 4}
    assert [str(w.message) for w in recwarn] == [
        "elsewhere failed, training goes on: ValueError: no figure.",
        "elsewhere failed, training goes on: ConnectionResetError: Connection lost.",
    ]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("out of memory")]
)
def test_memory_of_a_failed_picture_is_free_again(error):
    held: list[weakref.ref[torch.Tensor]] = []

    def draw() -> None:
        pixels = torch.zeros(10)
        cycle: list[Any] = [pixels]
        cycle.append(cycle)
        held.append(weakref.ref(pixels))
        raise error

    guard = Guard()
    with pytest.warns(UserWarning, match="out of memory"):
        guard.attempt("picture", draw)
    error.__traceback__ = None  # this test holds the error, a guard does not
    assert guard.failures["picture"] == 1
    import gc

    gc.collect()
    assert held[0]() is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_being_stopped_is_no_failure(error):
    def stopped() -> None:
        raise error

    guard = Guard()
    with pytest.raises(error):
        guard.attempt("picture", stopped)
    assert not guard.failures


def test_only_setup_may_refuse_and_only_in_words():
    class Picky(Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            raise ValueError("no such layer") if stage == "fit" else RuntimeError("no memory")

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            raise ValueError("too late")

    guard = Guard()
    picky: Any = guard.around("picky", Picky())
    with pytest.raises(ValueError, match="no such layer"):
        picky.setup(None, None, stage="fit")
    with pytest.warns(UserWarning, match="RuntimeError: no memory"):
        picky.setup(None, None, stage="test")
    with pytest.warns(UserWarning, match="ValueError: too late"):
        picky.on_train_start(None, None)
    assert guard.failures["picky"] == 2


def test_a_picture_that_failed_does_not_keep_its_images(train, monkeypatch):
    kept: list[int] = []
    original = SegmentationPredictions.on_validation_end

    def counted(self, *arguments):
        kept.append(len(self.kept["val"]))
        original(self, *arguments)

    monkeypatch.setattr(SegmentationPredictions, "on_validation_end", counted)
    monkeypatch.setattr("callbacks.segmentation_predictions.draw", breaking(RuntimeError("no")))
    with pytest.warns(UserWarning, match="segmentation_predictions failed"):
        code, _ = train(
            may_fail=True,
            task="segmentation",
            data__val_fraction=0.3,
            callbacks__segmentation_predictions__enabled="true",
            callbacks__segmentation_predictions__every_n_epochs=1,
        )
    assert code == 0
    assert kept[0] == kept[1] > 0


def rare_objects(root: Path, masks: bool = True) -> Path:
    """Images in VOC layout of which none shows an object, or none has a mask."""
    import numpy as np
    from PIL import Image

    generate(root, num_train=24, num_val=8)
    for file in root.rglob("SegmentationClass/*.png"):
        if masks:
            with Image.open(file) as mask:
                size = mask.size
            Image.fromarray(np.zeros(size[::-1], np.uint8)).save(file)
        else:
            file.unlink()
    if not masks:
        shutil.rmtree(next(root.rglob("SegmentationClass")))
    return root


ATTENTION = {
    "callbacks__attention_quality__enabled": "true",
    "callbacks__attention_quality__every_n_epochs": 1,
}


@pytest.mark.parametrize("task", TASKS)
def test_attention_without_objects_is_not_measured(train, tmp_path, task):
    root = rare_objects(tmp_path / "rare")
    shared = {"data__name": "voc", "data__root": root, "task": task}
    with pytest.warns(UserWarning, match="attention_quality failed.*no image with objects"):
        code, folder = train(may_fail=True, **shared, **ATTENTION)
    assert code == 0
    assert (folder / "checkpoints" / "last.ckpt").exists()
    assert summary(folder)["readout_failures"]["attention_quality"] >= 2


def test_pretraining_on_images_whose_masks_are_missing(train, tmp_path):
    root = rare_objects(tmp_path / "unmasked", masks=False)
    with pytest.warns(UserWarning, match="attention_quality failed"):
        code, folder = train(may_fail=True, data__name="voc", data__root=root, **ATTENTION)
    assert code == 0
    assert "attention_quality" in summary(folder)["readout_failures"]


def test_what_steers_is_outside(train, monkeypatch):
    from callbacks.random_state import RandomState

    monkeypatch.setattr(RandomState, "state_dict", breaking(RuntimeError("no randomness")))
    with pytest.raises(RuntimeError, match="no randomness"):
        train()


def test_a_callback_keeps_its_type_and_its_hooks():
    maps, views = callback_of("attention_maps"), callback_of("views")
    guard = Guard()
    assert guard.around("maps", maps) is maps
    guard.around("views", views)
    assert type(maps) is AttentionMaps
    assert maps.state_key == callback_of("attention_maps").state_key
    # What is not a callback's own is not called at every step.
    assert "on_train_batch_end" not in vars(views)
    assert "on_train_batch_start" in vars(views)
