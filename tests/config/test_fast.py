"""`--fast` shortens whatever run there is, in settings that are said and can be given otherwise."""

import pytest

from config import names
from config.errors import ConfigError
from config.length import resolve_for_data, steps_of_run
from config.lookup import CONFIG_DIR
from config.parsing import Command, parse
from config.resolve import resolve
from config.validation import check
from tests.conftest import summary

EXPERIMENTS = sorted((CONFIG_DIR / "experiments").glob("*.yaml"))


def fast(*words: str) -> Command:
    command = parse(["--fast", *words])
    assert isinstance(command, Command)
    return command


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_every_experiment_is_a_step_with_its_own_batch(file):
    command, whole = fast("--experiment", str(file)), parse(["--experiment", str(file)])
    hparams = command.hparams
    assert check(hparams) == hparams
    assert hparams.data.batch_size == (
        8 if whole.hparams.data.batch_size == "auto" else whole.hparams.data.batch_size
    )
    resolved = resolve_for_data(resolve(hparams), 5000, on_gpu=True)
    assert steps_of_run(resolved, 5000) == 1


def test_what_is_set_is_said_and_what_was_given_stays():
    command = fast("--trainer.max_epochs", "3", "--callbacks.dense_knn.num_images", "33")
    (note,) = command.notes
    assert "trainer.limit_train_batches 1" in note
    assert "max_epochs" not in note
    assert command.hparams.trainer.max_epochs == 3
    assert command.hparams.callbacks.dense_knn.num_images == 33
    assert " probe.num_images" not in note  # nor what has no effect on this task
    assert parse([]).notes == []
    # Null is given like any value: all images of the validation.
    assert fast("--trainer.limit_val_batches", "null").hparams.trainer.limit_val_batches is None


def test_a_batch_has_a_share_for_every_process_and_holds_its_chunks():
    assert fast("--trainer.devices", "3").hparams.data.batch_size == 24
    assert fast("--trainer.chunk_size", "32").hparams.data.batch_size == "auto"


def test_a_probe_keeps_enough_images_for_its_batch():
    probe = fast("--task", "linear_probe", "--data.batch_size", "512", "--data.val_fraction", "0.5")
    assert probe.hparams.probe.num_images == 1024


@pytest.mark.parametrize(
    "words",
    [["--study", "quick"], ["--compare", "a"], ["--evaluate", "a"], ["--run.resume", "a"]],
)
def test_it_is_refused_where_nothing_new_is_trained(words):
    with pytest.raises(ConfigError, match=f"--fast has no effect with {words[0]}"):
        fast(*words)


@pytest.mark.parametrize("task", names.TASKS)
def test_a_fast_run_does_all_there_is_to_do(train, capsys, task):
    chosen = {"data__val_fraction": 0.3} if task in ("segmentation", "linear_probe") else {}
    code, folder = train("run", "--fast", task=task, trainer__max_epochs=..., **chosen)
    assert code == 0
    found = summary(folder)
    assert (found["status"], found["epochs"], found["steps"]) == ("finished", 1, 1)
    assert "val/loss" in found
    assert any(name.startswith("test/") for name in found) == bool(chosen)
    assert "--fast: trainer.max_epochs 1" in capsys.readouterr().err
