"""A run that was killed after its last step comes to what it would have, when it is resumed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from callbacks.throughput import Throughput
from main import main
from tests.agents.test_saving import rows_of
from tests.conftest import options, summary, tiny
from utils.checkpoint_io import RunCheckpoints
from utils.logging import RunFolderLogger
from utils.run_folder import RunFolder

STEPS = 4
TASKS: dict[str, dict[str, Any]] = {
    "barlow_twins": {
        "callbacks.dense_knn.enabled": "true",
        "callbacks.gradient_agreement.enabled": "true",
    },
    "segmentation": {"segmentation.fusion": "fusion2"},
}
HOOKS = (
    *("on_train_batch_end", "on_validation_end", "on_train_epoch_end", "on_train_end"),
    *("on_fit_end", "on_test_start", "on_test_end"),
)
CASES = [
    (task, moment)
    for task in TASKS
    for moment in (*HOOKS, "last.ckpt", "summary.json")
    if task == "segmentation" or "test" not in moment  # a pretraining has none
]
CLOCK = ("seconds", "images_per_second", "wait_share", "peak_memory_mb")


def keep_at(
    moment: str, original: Callable[..., Any], keep: Callable[[str], None]
) -> Callable[..., Any]:
    """Returns a hook of a callback that keeps what a kill there leaves, once all is trained."""

    def hook(self: Any, trainer: Any, *rest: Any) -> None:
        original(self, trainer, *rest)
        if trainer.global_step == STEPS:
            keep(moment)

    return hook


@pytest.fixture(scope="module")
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, shapes_root: Path
) -> Path:
    """The folder of a run, beside what kills at all moments of its end would have left of it."""
    place = tmp_path_factory.mktemp("runs")
    folder = place / "whole"

    def keep(moment: str) -> None:
        shutil.copytree(folder, place / moment, dirs_exist_ok=True)

    save, write = RunCheckpoints.save_checkpoint, RunFolder.write_summary

    def saved(self: RunCheckpoints, checkpoint: dict[str, Any], path: str, **rest: Any) -> None:
        save(self, checkpoint, path, **rest)
        if checkpoint["global_step"] == STEPS and Path(path).name == "last.ckpt":
            keep("last.ckpt")

    def written(self: RunFolder, result: dict[str, Any]) -> None:
        keep("summary.json")
        write(self, result)

    settings = {
        "task": request.param,
        "data.root": shapes_root,
        "run.dir": place,
        "run.name": "whole",
        "trainer.limit_train_batches": STEPS // 2,
        "callbacks.learning_curves.enabled": "true",
        "callbacks.effective_receptive_field.enabled": "true",
        **TASKS[request.param],
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in HOOKS:
            original = getattr(Throughput, name)  # of the first callback
            patch.setattr(Throughput, name, keep_at(name, original, keep))
        patch.setattr(RunCheckpoints, "save_checkpoint", saved)
        patch.setattr(RunFolder, "write_summary", written)
        assert main(options(tiny(settings))) == 0
    return folder


def results(folder: Path) -> dict[str, Any]:
    """What the summary says that does not depend on the clock."""
    return {k: v for k, v in summary(folder).items() if not any(word in k for word in CLOCK)}


def pictures(folder: Path) -> dict[str, bytes]:
    figures = folder / "figures"
    return {
        file.relative_to(figures).as_posix(): file.read_bytes() for file in figures.rglob("*.png")
    }


@pytest.mark.parametrize(("whole", "moment"), CASES, indirect=["whole"])
def test_nothing_of_what_came_last_is_lost(whole, moment):
    folder = whole.parent / moment
    assert main(["--run.resume", moment, "--run.dir", str(whole.parent)]) == 0
    assert rows_of(folder) == rows_of(whole)
    assert results(folder) == results(whole)
    assert pictures(folder) == pictures(whole)
    assert f"learning_curves/step-{STEPS:07d}.png" in pictures(folder)


@pytest.mark.parametrize("task", TASKS)
def test_a_step_that_was_lost_leaves_nothing(train, monkeypatch, task):
    shared = {
        "task": task,
        "trainer__limit_train_batches": 2,
        "optim__schedule": "constant",
        "optim__warmup_epochs": 0,
    }
    _, short = train("short", **shared, trainer__max_epochs=1)
    original = Throughput.on_train_batch_start

    def killed(self, trainer, *rest):
        original(self, trainer, *rest)
        if trainer.global_step == 3:  # the first of the second epoch was a while ago
            next(log for log in trainer.loggers if isinstance(log, RunFolderLogger)).flush()
            shutil.copytree(short.parent / "long", short.parent / "killed")

    monkeypatch.setattr(Throughput, "on_train_batch_start", killed)
    train("long", **shared, trainer__max_epochs=2)
    monkeypatch.undo()
    folder = short.parent / "killed"
    assert "train/loss" in rows_of(folder)[2]
    again = ["--run.resume", "killed", "--run.dir", str(folder.parent), "--trainer.max_epochs", "1"]
    assert main(again) == 0
    assert rows_of(folder) == rows_of(short)
    assert results(folder) == results(short)
