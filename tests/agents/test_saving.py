"""What a run has saved is there, whole and right, whatever happens to process, disk and files."""

import json
import os
import random
import re
import signal
import tempfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import agents.fitting
from agents.barlow_twins import BarlowTwins
from agents.trainer import Trainer
from callbacks.interruption import Interruption
from callbacks.throughput import Throughput
from callbacks.views import Views
from config.lookup import check_complete
from config.parsing import Command, parse
from main import main
from tests.conftest import assert_same, files_at_most, summary, weights
from utils.checkpoint_io import RunCheckpoints
from utils.files import write_atomically
from utils.metrics_file import read_metrics
from utils.run_checkpoints import read_run_checkpoint
from utils.run_folder import RunFolder
from utils.stopwatch import Stopwatch


def resume(folder: Path, *words: str) -> int:
    return main(["--run.resume", folder.name, "--run.dir", str(folder.parent), *words])


def rows_of(folder: Path) -> dict[int, dict[str, float]]:
    """What does not depend on the clock."""
    rows = read_metrics(folder / "metrics.csv")
    return {s: {k: v for k, v in r.items() if "wait_share" not in k} for s, r in rows.items()}


def test_more_steps_are_numbered_as_in_one_go(train):
    shared = {"trainer__limit_train_batches": 3}
    _, whole = train("whole", **shared, trainer__max_steps=9)
    for steps in (3, 4, 6):
        _, parts = train(f"parts-{steps}", **shared, trainer__max_steps=steps)
        assert resume(parts, "--trainer.max_steps", "9") == 0
        assert sorted(rows_of(parts)) == sorted(rows_of(whole)), steps


def test_a_run_below_home_lies_in_one_place(train, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code, folder = train(run__dir="~/runs")
    assert code == 0
    assert (folder / "checkpoints" / "last.ckpt").exists()
    assert not (tmp_path / "~").exists()
    assert main(["--run.resume", "run", "--run.dir=~/runs", "--trainer.max_epochs", "3"]) == 0


TESTED = {
    "segmentation": ("test/miou",),
    "linear_probe": ("test/linear_accuracy", "test/linear_accuracy_last", "test/knn_accuracy"),
}


@pytest.mark.parametrize("ended", ["killed", "interrupted"])
def test_seconds_are_those_of_all_steps_however_a_part_ended(train, monkeypatch, ended):
    """Each step, epoch's end and readout takes a minute, of a clock that only they turn."""
    clock = SimpleNamespace(now=1e6)  # of a machine that was started long ago

    def slowly(kind, name):
        original = getattr(kind, name)

        def act(self, *arguments, **named):
            clock.now += 60
            return original(self, *arguments, **named)

        monkeypatch.setattr(kind, name, act)

    slowly(BarlowTwins, "training_step")
    slowly(BarlowTwins, "validation_step")
    slowly(Views, "on_train_batch_start")
    slowly(Views, "on_train_epoch_end")
    monkeypatch.setattr(
        "callbacks.throughput.time", SimpleNamespace(perf_counter=lambda: clock.now)
    )
    monkeypatch.setattr("agents.trainer.Stopwatch", lambda: Stopwatch(lambda: clock.now))
    shared = {"trainer__limit_train_batches": 2, "callbacks__views__enabled": "true"}
    _, whole = train("whole", **shared, trainer__max_epochs=3)

    class Killed(BaseException):
        """Ends it without a summary, as SIGKILL does."""

    original = Interruption.on_train_batch_end

    def end(self, trainer, *rest):
        if trainer.global_step == 5:  # within an epoch
            if ended == "killed":
                raise Killed
            os.kill(os.getpid(), signal.SIGINT)
        original(self, trainer, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Interruption, "on_train_batch_end", end)
        if ended == "killed":
            patch.setattr(RunFolder, "write_summary", lambda *_: None)
            with pytest.raises(Killed):
                train("parts", **shared, trainer__max_epochs=3)
        else:
            assert train("parts", **shared, trainer__max_epochs=3)[0] == 130
    parts = whole.parent / "parts"
    for _ in range(2):  # the second time there is nothing left to do
        assert resume(parts) == 0
        expected, found = summary(whole), summary(parts)
        assert (found["training_seconds"], found["readout_seconds"]) == (360, 540)
        assert found["images_per_second"] == pytest.approx(8 / 60, abs=0.01)
        for name in expected:
            if "seconds" in name or name == "data_wait_share":
                assert found[name] == expected[name], name


def test_memory_is_that_of_all_steps(train, monkeypatch):
    original = BarlowTwins.training_step

    def hungry(self, *arguments):
        torch.ones(75_000_000)  # 300 MB, for a moment
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(BarlowTwins, "training_step", hungry)
        _, folder = train(trainer__max_epochs=1)
    needed = summary(folder)["peak_memory_mb"]
    assert resume(folder) == 0  # nothing is left to train
    assert summary(folder)["peak_memory_mb"] > needed - 100


def test_a_part_without_a_step_leaves_what_was_said_and_adds_up_what_failed(train):
    _, folder = train(trainer__max_epochs=1)
    first = summary(folder)
    failures = {"views": 2, "embeddings": "none"}
    known = {**first, "readout_failures": failures}
    (folder / "summary.json").write_text(json.dumps(known))
    assert resume(folder, "--callbacks.report.enabled", "true") == 0
    found = summary(folder)
    assert found["in_words"] == first["in_words"]
    assert found["images_per_second"] == first["images_per_second"] > 0
    assert found["readout_failures"] == {"views": 2}  # what is no number does not count
    assert "views failed 2x" in (folder / "report.html").read_text()


def test_numbers_of_earlier_weights_do_not_stay(train):
    _, folder = train(task="segmentation", trainer__max_epochs=1)
    assert main(["--evaluate", "run", "--run.dir", str(folder.parent)]) == 0
    name = "evaluate/voc12_standard/miou"
    assert resume(folder) == 0  # no step more: the same weights
    assert name in summary(folder)
    assert resume(folder, "--trainer.max_epochs", "2") == 0
    assert name not in summary(folder)
    assert "test/miou" in summary(folder)


@pytest.mark.parametrize("task", TESTED)
def test_a_finished_run_that_is_resumed_keeps_its_rows(train, task):
    _, folder = train("first", task=task, trainer__max_epochs=1)
    before = rows_of(folder)
    assert {*TESTED[task]} <= {name for row in before.values() for name in row}
    assert resume(folder) == 0
    assert rows_of(folder) == before


@pytest.mark.parametrize("task", TESTED)
def test_a_run_that_was_killed_in_its_test_has_all_of_it_when_resumed(train, monkeypatch, task):
    _, whole = train("whole", task=task, trainer__max_epochs=1)

    def killed(self, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Throughput, "on_test_start", killed, raising=False)
    with suppress(KeyboardInterrupt):
        train("killed", task=task, trainer__max_epochs=1)
    monkeypatch.undo()
    folder = whole.parent / "killed"
    assert not any(name in row for row in rows_of(folder).values() for name in TESTED[task])
    assert resume(folder) == 0
    assert rows_of(folder) == rows_of(whole)


@pytest.mark.parametrize("task", TESTED)
def test_a_test_that_is_asked_to_stop_stops_and_is_made_anew(train, task, monkeypatch, capsys):
    _, whole = train("whole", task=task, trainer__max_epochs=1)

    def asked(self, *_):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Throughput, "on_test_batch_start", asked, raising=False)
    code, folder = train("asked", task=task, trainer__max_epochs=1)
    assert code == 130
    assert summary(folder)["status"] == "interrupted"
    assert "--run.resume asked" in capsys.readouterr().out
    monkeypatch.undo()
    assert resume(folder) == 0
    assert rows_of(folder) == rows_of(whole)
    assert summary(folder)["in_words"] == summary(whole)["in_words"]
    monkeypatch.setattr(Throughput, "on_test_batch_start", asked, raising=False)
    assert resume(folder) == 130  # now there are numbers of a test that was completed
    assert summary(folder)["readout_failures"] == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_after_the_last_step_it_leaves_the_test_to_do(train, monkeypatch, number):
    shared = {"task": "segmentation", "trainer__max_epochs": 1}
    _, whole = train("whole", **shared)

    def asked(self, *_):
        os.kill(os.getpid(), number)

    monkeypatch.setattr(Throughput, "on_validation_start", asked, raising=False)
    code, folder = train("asked", **shared)
    assert code == 130
    assert summary(folder)["status"] == "interrupted"
    assert "before the test" in summary(folder)["reason"]
    assert not any("test/miou" in row for row in rows_of(folder).values())
    monkeypatch.undo()
    assert resume(folder) == 0
    assert rows_of(folder) == rows_of(whole)


@pytest.mark.parametrize("where", ["save_backbone", "load_checkpoint"])
def test_asked_to_stop_between_training_and_test_it_stops(train, monkeypatch, capsys, where):
    """Where only Lightning, or nobody, would hear of it."""
    place: Any = agents.fitting if where == "save_backbone" else RunCheckpoints
    original = getattr(place, where)

    def asked(*arguments, **named):
        result = original(*arguments, **named)
        os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(place, where, asked)
    previous = signal.signal(signal.SIGTERM, lambda *_: None)  # else it would end the tests
    try:
        code, folder = train("asked", task="segmentation", trainer__max_epochs=1)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert code == 130
    assert summary(folder)["status"] == "interrupted"
    assert "--run.resume asked" in capsys.readouterr().out
    assert not any("test/miou" in row for row in rows_of(folder).values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nobody_who_does_not_wait_for_the_end_is_left_without_a_word(
    train, monkeypatch, capsys, number
):
    original = RunFolder.write_summary

    def impatient(self, result):
        original(self, result)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(RunFolder, "write_summary", impatient)
    previous = signal.signal(signal.SIGTERM, lambda *_: None)  # else it would end the tests
    try:
        code, folder = train("first", trainer__max_epochs=1)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert code == 130
    said = capsys.readouterr().err
    assert f"Interrupted. What was saved is in {folder / 'checkpoints'}. Resume the run" in said
    assert "--run.resume first" in said


def test_a_terminal_that_is_closed_ends_no_run_that_nohup_began(train, monkeypatch):
    monkeypatch.setattr(
        Throughput, "on_train_batch_start", lambda *_: os.kill(os.getpid(), signal.SIGHUP)
    )
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        code, folder = train("first", trainer__max_epochs=1)
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert code == 0
    assert summary(folder)["status"] == "finished"


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "flipped": lambda content: (
        content[: len(content) // 2]
        + bytes([content[len(content) // 2] ^ 0x10])
        + content[len(content) // 2 + 1 :]
    ),
    "garbled": lambda content: random.Random(0).randbytes(len(content)),
}


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    file.unlink()  # best.ckpt and last.ckpt may be one file with two names
    file.write_bytes(DAMAGES[how](content))


@pytest.mark.parametrize("how", ["empty", "cut", "flipped"])
def test_a_damaged_last_checkpoint_is_named_and_the_one_before_it_used(train, capsys, how):
    shared = {"optim__schedule": "constant", "optim__warmup_epochs": 0}
    _, whole = train("whole", **shared, trainer__max_epochs=3)
    _, folder = train("half", **shared)
    damage(folder / "checkpoints" / "last.ckpt", how)
    capsys.readouterr()
    assert resume(folder, "--trainer.max_epochs", "3") == 0
    said = capsys.readouterr().err
    assert "half/checkpoints/last.ckpt" in said
    assert "previous.ckpt" in said
    assert_same(weights(folder), weights(whole))
    assert rows_of(folder) == rows_of(whole)
    damage(folder / "checkpoints" / "last.ckpt", how)
    damage(folder / "checkpoints" / "previous.ckpt", how)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert resume(folder, "--trainer.max_epochs", "4") == 2
    assert "no checkpoint to go on from" in capsys.readouterr().err
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("how", ["empty", "cut", "flipped"])
def test_a_damaged_best_checkpoint_is_named_and_the_last_one_used(train, capsys, how):
    _, folder = train("probe", task="linear_probe", trainer__max_epochs=2)
    best, last = (folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    damage(best, how)
    capsys.readouterr()
    assert main(["--evaluate", "probe", "--run.dir", str(folder.parent)]) == 0
    assert "probe/checkpoints/best.ckpt" in (said := capsys.readouterr().err)
    assert "last.ckpt is used instead" in said
    found = summary(folder)
    assert found["evaluate/linear_accuracy"] == found["test/linear_accuracy_last"]
    assert resume(folder, "--trainer.max_epochs", "3") == 0
    assert "best.ckpt" in (said := capsys.readouterr().err)
    assert "The best of the validations from here on" in said
    assert "is used instead" not in said
    assert read_run_checkpoint(best)["epoch"] == 2
    damage(best, how)
    damage(last, how)
    assert main(["--evaluate", "probe", "--run.dir", str(folder.parent)]) == 0
    assert "previous.ckpt is used instead" in capsys.readouterr().err
    damage(folder / "checkpoints" / "previous.ckpt", how)
    assert main(["--evaluate", "probe", "--run.dir", str(folder.parent)]) == 2
    said = capsys.readouterr().err
    assert all(f"probe/checkpoints/{name}.ckpt" in said for name in ("best", "last"))


def diverge(file: Path, broken: float) -> str:
    """Breaks the first and the last weight in a file, as a step that diverged does."""
    saved = torch.load(file, weights_only=True)
    first, *_, last = saved["state_dict"].values()
    first.view(-1)[0] = last.view(-1)[-1] = broken
    file.unlink()
    torch.save(saved, file)
    state = saved["state_dict"]
    return f"2 of {len(state)} tensors are NaN or infinite in places (first {next(iter(state))})"


@pytest.mark.parametrize("broken", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused_and_where_others_are_is_said(
    train, shapes_root, capsys, broken
):
    _, folder = train("run", task="segmentation")
    best, last, previous = (
        folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last", "previous")
    )
    said = {file: diverge(file, broken) for file in (best, last)}
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    for words, file in (
        (["--run.resume", "run"], last),
        (["--evaluate", "run"], best),
        (["--predict", "run", "--images", str(shapes_root)], best),
        (["--export", "run"], last),
        (["--export", "run", "--format", "pt2"], best),
    ):
        capsys.readouterr()
        assert main([*words, "--run.dir", str(folder.parent)]) == 2, words
        error = capsys.readouterr().err
        assert f"{file} is not loaded: {said[file]}" in error
        assert f"{previous} has none: remove {file.name}, and copy that to its place." in error
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    last.write_bytes(previous.read_bytes())
    assert resume(folder) == 0
    diverge(last, broken)
    for file, named in ((previous, f"{best} has none: remove"), (best, "had diverged.\n")):
        diverge(file, broken)
        capsys.readouterr()
        assert main(["--export", "run", "--run.dir", str(folder.parent)]) == 2
        assert named in capsys.readouterr().err


def test_moments_that_are_no_numbers_are_not_gone_on_from(train, capsys):
    _, folder = train("run", task="barlow_twins")
    last = folder / "checkpoints" / "last.ckpt"
    saved = torch.load(last, weights_only=True)
    saved["optimizer_states"][0]["state"][0]["exp_avg"].view(-1)[0] = torch.nan
    last.unlink()
    torch.save(saved, last)
    assert resume(folder, "--trainer.max_epochs", "3") == 2
    said = capsys.readouterr().err
    assert "last.ckpt is not loaded: 1 of " in said
    assert "(first optimizer_states.0.state.0.exp_avg)" in said
    assert "previous.ckpt has none: remove last.ckpt, and copy that to its place." in said
    # What it learnt is there.
    assert main(["--export", "run", "--run.dir", str(folder.parent)]) == 0
    last.write_bytes((folder / "checkpoints" / "previous.ckpt").read_bytes())
    assert resume(folder, "--trainer.max_epochs", "3") == 0


@pytest.mark.parametrize("entry", ["callbacks", "classes"])
def test_a_checkpoint_with_a_nonsense_entry_is_damaged(train, capsys, entry):
    _, folder = train("run", task="segmentation", trainer__max_epochs=1)
    (folder / "checkpoints" / "previous.ckpt").unlink(missing_ok=True)
    for name in ("last", "best"):
        file = folder / "checkpoints" / f"{name}.ckpt"
        saved = torch.load(file, weights_only=True)
        file.unlink()
        torch.save({**saved, entry: 3}, file)
    for action in ("--run.resume", "--evaluate", "--export"):
        assert main([action, "run", "--run.dir", str(folder.parent)]) == 2
        assert f"ckpt is damaged: its {entry} are not those" in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(train, capsys):
    _, folder = train("first")
    checkpoints = {file: file.read_bytes() for file in (folder / "checkpoints").iterdir()}
    smallest = min(map(len, checkpoints.values()))
    with files_at_most(smallest // 2):
        assert resume(folder, "--trainer.max_epochs", "3") == 1
    assert "ckpt cannot be written (File too large)" in summary(folder)["reason"]
    assert "--run.resume first" in capsys.readouterr().out
    assert checkpoints == {file: file.read_bytes() for file in (folder / "checkpoints").iterdir()}
    assert resume(folder, "--trainer.max_epochs", "3") == 0
    assert summary(folder)["steps"] == 9


def test_no_checkpoint_passes_through_the_temporary_folder(train, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert train("first")[0] == 0


@pytest.mark.parametrize("how", ["empty", "cut", "garbled"])
def test_damaged_settings_are_refused_and_come_back_from_the_checkpoint(train, capsys, how):
    _, folder = train("first", optim__lr=0.003)
    file = folder / "hparams.yaml"
    before = yaml.safe_load(file.read_text())
    damage(file, how)
    damaged = file.read_bytes()
    for action in ("--run.resume", "--evaluate"):
        assert main([action, "first", "--run.dir", str(folder.parent)]) == 2
        assert "hparams.yaml is damaged" in capsys.readouterr().err
    assert file.read_bytes() == damaged
    file.unlink()
    assert resume(folder) == 0
    assert yaml.safe_load(file.read_text()) == before


def test_settings_are_refused_wherever_they_are_cut(train):
    _, folder = train("first", trainer__max_epochs=1)
    saved = torch.load(folder / "checkpoints" / "last.ckpt")["hyper_parameters"]
    file = folder / "hparams.yaml"
    check_complete(file, saved)
    lines = file.read_text().splitlines(keepends=True)
    for end in range(1, len(lines)):
        file.write_text("".join(lines[:end]))
        with pytest.raises(ValueError, match=r"hparams\.yaml is damaged"):
            check_complete(file, saved)


@pytest.fixture
def killed(train, monkeypatch):
    """What kill -9 in the first epoch leaves."""

    def kill(self, trainer, *_):
        if trainer.global_step == 2:
            raise RuntimeError("killed")

    monkeypatch.setattr(Interruption, "on_train_batch_end", kill)
    with pytest.raises(RuntimeError, match="killed"):
        train("first")
    monkeypatch.undo()
    folder = Path(os.environ["TWINSIGHT_RUN_FOLDER"])
    (folder / "summary.json").unlink()
    (folder / ".hparams.yaml.123").write_text("half")
    return folder


@pytest.mark.parametrize("how", ["first", "auto", "name"])
def test_killed_before_its_first_checkpoint_a_run_starts_anew_in_its_folder(
    train, killed, capsys, how
):
    _, whole = train("whole")
    if how == "name":
        assert train("first")[0] == 0
    else:
        assert main(["--run.resume", how, "--run.dir", str(killed.parent)]) == 0
    assert "first was stopped before its first checkpoint" in capsys.readouterr().err
    assert_same(weights(killed), weights(whole))
    assert rows_of(killed) == rows_of(whole)
    assert not list(killed.rglob(".*.123"))


def test_what_another_process_trained_in_the_meantime_is_not_begun_again(killed):
    words = ["--run.resume", "first", "--run.dir", str(killed.parent)]
    command = parse(words)
    assert isinstance(command, Command)
    late = Trainer(command.hparams)  # finds no checkpoint
    assert main(words) == 0
    with pytest.raises(ValueError, match="in the meantime"):
        late.run()
    assert summary(killed)["status"] == "finished"


def test_a_folder_with_anything_else_in_it_is_not_taken_over(train, killed, capsys):
    (killed / "thesis.tex").write_text("mine")
    assert train("first")[0] == 2
    assert "never overwritten" in capsys.readouterr().err


SIDE_FILES = ("summary.json", "environment.json", "metrics.csv", "figures/views/train/*.png")


@pytest.mark.parametrize("how", list(DAMAGES))
def test_damaged_side_files_are_named_and_replaced(train, capsys, how):
    shared = {"callbacks__views__enabled": "true", "callbacks__report__enabled": "true"}
    _, folder = train("first", **shared)
    for pattern in SIDE_FILES:
        damage(next(folder.glob(pattern)), how)
    capsys.readouterr()
    assert resume(folder) == 0
    said = capsys.readouterr().err
    for name in ("summary.json", "environment.json", "metrics.csv", ".png"):
        # A flipped bit may leave a file that can be read.
        assert how == "flipped" or f"{name} is damaged" in said
    assert summary(folder)["status"] == "finished"
    read_metrics(folder / "metrics.csv")
    assert "metrics.csv is damaged" not in capsys.readouterr().err
    assert "finished" in (folder / "report.html").read_text()


@pytest.mark.parametrize("name", ["report.html", "metrics.csv"])
def test_a_file_that_cannot_be_written_keeps_no_other_away(
    train, capsys, recwarn, monkeypatch, name
):
    def blocked(file: Path, content: str | bytes) -> None:
        if file.name == name:
            raise OSError(f"{file} cannot be written (No space left on device).")
        write_atomically(file, content)

    for module in ("utils.metrics_file", "callbacks.report"):
        monkeypatch.setattr(f"{module}.write_atomically", blocked)
    code, folder = train("first", may_fail=True, callbacks__report__enabled="true")
    assert code == 0
    said = capsys.readouterr().err + "".join(str(each.message) for each in recwarn)
    assert f"{name} cannot be written" in said
    assert summary(folder)["status"] == "finished"
    left = {"report.html", "metrics.csv", "hparams.yaml", "environment.json"} - {name}
    assert left <= {file.name for file in folder.iterdir()}


def test_a_run_whose_summary_cannot_be_written_has_not_finished(train, capsys, monkeypatch):
    _, folder = train("first")

    def full(self, summary):
        raise OSError("summary.json cannot be written (No space left on device).")

    monkeypatch.setattr(RunFolder, "write_summary", full)
    assert resume(folder) == 1
    assert "summary.json cannot be written" in capsys.readouterr().err


PLACES = ("metrics.csv", "summary.json", "checkpoints/best.ckpt", "checkpoints/backbone.pth")


@pytest.mark.parametrize("name", [*PLACES, "figures"])
def test_a_run_does_not_train_towards_files_that_cannot_be_written(train, capsys, name):
    _, folder = train("first", trainer__max_epochs=1)
    (folder / name).unlink(missing_ok=True)
    (folder / name).touch() if name == "figures" else (folder / name).mkdir()
    assert resume(folder, "--trainer.max_epochs", "2") == 2
    assert re.search(rf"{name} is a .* of the run belongs there: move", capsys.readouterr().err)
    assert main(["--compare", "first", "--run.dir", str(folder.parent)]) == 0


def test_settings_that_are_no_file_are_said(train, capsys):
    _, folder = train("first", trainer__max_epochs=1)
    folder.joinpath("hparams.yaml").unlink()
    folder.joinpath("hparams.yaml").mkdir()
    for words in (["--run.resume", "first"], ["--compare", "first"], ["--evaluate", "first"]):
        assert main([*words, "--run.dir", str(folder.parent)]) == 2
        assert "hparams.yaml is damaged (it is no file). Remove it" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_a_run_goes_on_from_its_best_checkpoint_as_is_advised(train, capsys, how):
    _, folder = train("first", trainer__max_epochs=1)
    last, best = (folder / "checkpoints" / name for name in ("last.ckpt", "best.ckpt"))
    last.unlink()
    if how == "damaged":
        last.write_bytes(best.read_bytes()[:1000])
    assert resume(folder, "--trainer.max_epochs", "2") == 2
    assert f"or copy {best} to {last}, or" in capsys.readouterr().err
    last.write_bytes(best.read_bytes())
    assert resume(folder, "--trainer.max_epochs", "2") == 0
    assert summary(folder)["epochs"] == 2


def test_what_is_logged_is_on_the_disk_before_a_checkpoint_is(train, monkeypatch):
    seen = []
    original = RunCheckpoints.save_checkpoint

    def save(self, checkpoint, path, storage_options=None):
        original(self, checkpoint, path, storage_options)
        rows = read_metrics(self.folder.path / "metrics.csv")
        steps = [step for step, row in rows.items() if "train/loss" in row]
        seen.append((checkpoint["global_step"], len(steps)))

    monkeypatch.setattr(RunCheckpoints, "save_checkpoint", save)
    train("first")
    assert seen
    assert all(steps == logged for steps, logged in seen)
