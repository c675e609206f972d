"""What a run shows while it works."""

import re
from datetime import timedelta
from io import StringIO
from itertools import count
from types import SimpleNamespace

import pytest
from rich.console import Console
from torch import nn

from callbacks.progress import Pace, ProgressBar, parts_table
from callbacks.throughput import Throughput
from main import main
from tests.conftest import stopped_after, summary
from utils.console import console

ON = {"callbacks__dense_knn__enabled": "true", "callbacks__dense_knn__every_n_epochs": 1}


@pytest.fixture
def states(monkeypatch):
    """What the bar shows at the end of every step: its position, numbers and the time left."""
    found: list[tuple[str, dict[str, float], str]] = []
    original = ProgressBar.on_train_batch_end

    def noting(self, trainer, pl_module, *arguments):
        original(self, trainer, pl_module, *arguments)
        found.append((self.position, self.get_metrics(trainer, pl_module), self.left))

    monkeypatch.setattr(ProgressBar, "on_train_batch_end", noting)
    return found


@pytest.mark.parametrize(
    ("length", "epochs"),
    [
        ({"trainer__max_epochs": 2}, [1, 1, 1, 2, 2, 2]),
        ({"trainer__max_epochs": ..., "trainer__max_steps": 4}, [1, 1, 1, 2]),
        (
            {"trainer__max_epochs": ..., "trainer__max_steps": 2, "trainer__accumulate": 2},
            [1, 1, 1],
        ),
    ],
)
def test_epochs_are_counted_from_one_to_the_last(train, states, length, epochs):
    assert train("run", **length)[0] == 0
    last = epochs[-1]
    assert [position for position, _, _ in states] == [f"Epoch {n}/{last}" for n in epochs]


def test_a_run_that_goes_on_within_an_epoch_shows_how_far_that_is(train, states, monkeypatch):
    batches: list[tuple[float, float | None]] = []

    def noting(name):
        reached = getattr(ProgressBar, name)

        def act(self, *arguments):
            reached(self, *arguments)
            task = self.progress.tasks[self.train_progress_bar_id]
            batches.append((task.completed, task.total))

        monkeypatch.setattr(ProgressBar, name, act)

    # Two steps an epoch, of two batches and of one: the run ends within its second epoch.
    length = {"trainer__max_epochs": ..., "trainer__max_steps": 3, "trainer__accumulate": 2}
    with stopped_after(1):
        code, folder = train("run", **length)
    assert code == 130
    noting("on_train_start")
    noting("on_train_batch_end")
    assert main(["--run.resume", folder.name, "--run.dir", str(folder.parent)]) == 0
    assert [position for position, _, _ in states] == [f"Epoch {n}/2" for n in (1, 1, 1, 2, 2)]
    assert batches == [(2, 3), (3, 3), (1, 2), (2, 2)]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("seconds", "steps", "after", "says"),
    [(2, 61, 11, True), (2, 60, 11, False), (70, 52, 2, True), (45, 53, 3, True)],
)
def test_a_long_run_says_once_how_long_it_takes(
    monkeypatch, accumulate, seconds, steps, after, says
):
    said: list[tuple[int, str]] = []
    throughput = Throughput()
    trainer = SimpleNamespace(
        global_step=100,  # resumed
        estimated_stepping_batches=100 + steps,
        num_training_batches=30 * accumulate,
        accumulate_grad_batches=accumulate,
        is_global_zero=True,
    )
    monkeypatch.setattr(
        console, "info", lambda line, *values: said.append((trainer.global_step, line % values))
    )
    pace = Pace(throughput)
    pace.on_train_start(trainer, nn.Identity())
    for batch in range(1, steps * accumulate + 1):
        trainer.global_step = 100 + batch // accumulate
        throughput.seconds += seconds / accumulate
        if batch == 1:
            throughput.seconds += 1000  # features of all images, say
        pace.on_train_batch_end(trainer, nn.Identity())
    epoch, run = (timedelta(seconds=seconds * n) for n in (30, steps))
    line = f"{seconds} s a step: {epoch} an epoch, {run} all steps from 100 on"
    assert [(step, each.partition(";")[0]) for step, each in said] == [(100 + after, line)] * says


def test_the_numbers_that_matter_are_those_measured_last(train, states):
    code, folder = train("run", **ON)
    assert code == 0
    (_, first, _), (_, last, left) = states[0], states[-1]
    assert set(first) == {"train/loss"}
    assert set(last) == {"train/loss", "val/loss", "val/dense_knn_miou"}
    assert last["val/dense_knn_miou"] > 0
    assert left == "0:00:00 left"
    assert re.fullmatch(r"\d+:\d\d:\d\d left", states[2][2])
    assert summary(folder)["steps"] == len(states)


def test_a_resumed_run_shows_the_numbers_of_before_at_once(train, states):
    _, folder = train("run", **ON)
    (*_, (_, before, _)) = states
    states.clear()
    words = ["--run.resume", "run", "--run.dir", str(folder.parent), "--trainer.max_epochs", "3"]
    assert main(words) == 0
    (_, first, _), *_ = states
    assert first.keys() == {"train/loss", "val/loss", "val/dense_knn_miou"}
    assert first["val/loss"] != before["val/loss"]  # that of the first epoch's end


def test_the_time_left_is_that_of_the_steps_that_are_left(train, states, monkeypatch):
    clock = count(0, 10)  # seconds, at each look
    monkeypatch.setattr("callbacks.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert train("run")[0] == 0
    steps = len(states)
    expected = [f"{timedelta(seconds=10 * (steps - done))} left" for done in range(1, steps + 1)]
    assert [left for _, _, left in states] == expected


def test_the_last_numbers_stay_on_the_screen(train, monkeypatch):
    shown: list[dict[str, float]] = []
    original = ProgressBar.get_metrics

    def noting(self, *arguments):
        shown.append(original(self, *arguments))
        return shown[-1]

    monkeypatch.setattr(ProgressBar, "get_metrics", noting)
    code, folder = train("run", **ON)
    assert code == 0
    for name in ("val/loss", "val/dense_knn_miou"):
        assert shown[-1][name] == pytest.approx(summary(folder)[name])
    assert shown[-1]["val/loss"] != shown[0].get("val/loss")


def test_parts_say_what_is_trained():
    frozen, half = nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2), nn.Linear(1000, 2))
    frozen.requires_grad_(False)
    half[0].requires_grad_(False)
    console = Console(file=StringIO(), width=100)
    parts = {"frozen [x]": frozen, "half": half, "all": nn.Linear(1, 1), "empty": nn.ReLU()}
    console.print(parts_table(parts))
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        if line.startswith("│")
    ]
    assert rows == [
        ["frozen [x]", "Linear", "8", "frozen"],
        ["half", "Sequential", "2.0 K", "2.0 K"],
        ["all", "Linear", "2", "all"],
    ]


def test_a_run_says_nothing_frightening(train, capsys, image_folder, recwarn):
    """Of a validation that is not there, of a network that is partly in eval mode."""
    shared = {"task": "segmentation", "backbone__freeze": "true", "data__val_fraction": 0.3}
    assert train("frozen", trainer__max_epochs=1, **shared)[0] == 0
    said = capsys.readouterr().out
    assert all(f"│ {part} " in said for part in ("backbone", "head"))
    assert train("stopped", trainer__max_epochs=..., trainer__max_steps=2)[0] == 0
    images = {"data__name": "image_folder", "data__root": image_folder, "data__val_fraction": 0}
    assert train("unvalidated", trainer__max_epochs=1, **images)[0] == 0
    said = capsys.readouterr()
    heard = said.out + said.err + "".join(str(each.message) for each in recwarn)
    for words in ("HINT", "across ranks", "model summary", "eval mode", "FLOPs"):
        assert words not in heard
