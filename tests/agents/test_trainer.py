"""Runs of the whole program: what they leave behind, how they stop and go on."""

import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import get_worker_info

from agents.barlow_twins import BarlowTwins
from agents.feature_cache import cache_features
from agents.fitting import Fitting
from callbacks.interruption import Interruption
from config.names import DATASETS, TASKS
from config.parsing import Command, parse
from datamodules.image_files import ImageFiles
from main import main
from tests.conftest import assert_same, options, parsed, summary, weights
from utils.checkpoint_io import RunCheckpoints
from utils.imports import load
from utils.metrics_file import read_metrics
from utils.rng import CPU
from utils.run_checkpoints import read_run_checkpoint
from utils.run_folder import RunFolder
from utils.stopwatch import Stopwatch


def test_a_run_leaves_everything_in_its_folder(train, capsys):
    code, folder = train("first")
    assert code == 0
    found = summary(folder)
    assert found["status"] == "finished"
    assert found["steps"] == 6
    assert found["transductive"] is False
    for key in ("val/loss", "train/loss", "images_per_second", "peak_memory_mb", "wall_seconds"):
        assert found[key] > 0
    rows = read_metrics(folder / "metrics.csv")
    assert [step for step in rows if "train/loss" in rows[step]] == list(range(6))
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"best.ckpt", "last.ckpt", "previous.ckpt", "backbone.pth"}
    environment = yaml.safe_load((folder / "environment.json").read_text())
    assert torch.__version__.startswith(environment["packages"]["torch"])
    said = capsys.readouterr().out
    for words in ("Trained: barlow_twins", "checkpoints ", "Next:", "mean diagonal"):
        assert words in said


def test_saved_settings_repeat_the_run_under_a_new_name(train, tmp_path):
    _, folder = train("first", backbone__drop_path=0.2)
    saved = yaml.safe_load((folder / "hparams.yaml").read_text())
    assert saved["run"]["name"] is None
    assert saved["optim"]["lr"] == pytest.approx(2e-3 * (8 / 128) ** 0.5)
    assert "momentum" not in saved["optim"]  # adamw does not read it
    assert main(["--experiment", str(folder / "hparams.yaml"), "--run.name", "again"]) == 0
    again = folder.parent / "again"
    assert_same(weights(again), weights(folder))
    assert yaml.safe_load((again / "hparams.yaml").read_text()) == saved


def test_a_run_may_be_one_of_a_thread(train):
    """As in a notebook that goes on meanwhile; no signals are heard there."""
    with ThreadPoolExecutor(1) as threads:
        code, folder = threads.submit(train, "run", task="segmentation").result()
    assert code == 0
    assert summary(folder)["status"] == "finished"


@pytest.mark.parametrize(
    ("number", "step"),
    [
        *((number, step) for number in (signal.SIGINT, signal.SIGTERM) for step in (2, 3, 4)),
        *((number, 2) for number in (signal.SIGHUP, signal.SIGUSR1)),
    ],
)
def test_k_steps_and_k_more_after_an_interruption_are_2k_steps(
    train, monkeypatch, capsys, caplog, number, step
):
    # Three batches an epoch: inside the first, at its very end, inside the second.
    shared = {"backbone__drop_path": 0.3, "data__num_workers": 1, "trainer__chunk_size": 4}
    shared |= {"callbacks__health__every_n_steps": 1, "callbacks__views__enabled": "true"}
    whole = Path(str(train("whole", **shared)[1]))
    original = Interruption.on_train_batch_end

    def interrupt(self, trainer, *rest):
        if trainer.global_step == step:
            # As a terminal, SLURM and `timeout` do: to the processes that load images as well.
            processes = (*multiprocessing.active_children(), multiprocessing.current_process())
            words = [str(process.pid) for process in processes]
            subprocess.run(["kill", f"-{number.value}", *words], check=True)
        original(self, trainer, *rest)

    monkeypatch.setattr(Interruption, "on_train_batch_end", interrupt)
    code, half = train("half", **shared)
    assert code == 130
    assert summary(half)["status"] == "interrupted"
    assert summary(half)["steps"] == step
    assert f"--run.resume {half.name}" in capsys.readouterr().out
    assert "weights_only" not in caplog.text  # a note of Lightning's on what it saves
    monkeypatch.undo()
    assert main(["--run.resume", "half", "--run.dir", str(half.parent)]) == 0
    assert_same(weights(half), weights(whole))
    one, other = (read_metrics(folder / "metrics.csv") for folder in (half, whole))
    assert one.keys() == other.keys()
    for number, row in other.items():
        same = {name: value for name, value in row.items() if "/" in name and "data_" not in name}
        assert same.items() <= one[number].items()
    observed = [
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["Health"]
        for folder in (half, whole)
    ]
    assert observed[0] == observed[1]
    drawn = [{file.name for file in folder.rglob("views/train/*.png")} for folder in (half, whole)]
    assert drawn[0] == drawn[1] != set()
    assert summary(half)["status"] == "finished"
    assert not list(half.rglob("*-v1.ckpt"))


def test_resume_from_the_end_of_an_epoch_after_a_crash(train, monkeypatch):
    shared = {"backbone__drop_path": 0.3, "trainer__max_epochs": 3}
    _, whole = train("whole", **shared)

    def crash(self, trainer, *_):
        if trainer.global_step == 4:
            raise RuntimeError("power cut")

    monkeypatch.setattr(Interruption, "on_train_batch_end", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        train("half", **shared)
    folder = whole.parent / "half"
    assert summary(folder)["status"] == "failed"
    assert "power cut" in summary(folder)["reason"]
    monkeypatch.undo()
    assert main(["--run.resume", "auto", "--run.dir", str(folder.parent)]) == 0
    assert_same(weights(folder), weights(whole))


PROBE = {
    "callbacks__online_probe__enabled": "true",
    "callbacks__online_probe__num_images": 20,
    "callbacks__online_probe__every_n_epochs": 1,
}


def rows_of(folder):
    rows = read_metrics(folder / "metrics.csv")
    return {
        step: {name: value for name, value in row.items() if "data_" not in name}
        for step, row in rows.items()
    }


@pytest.fixture
def after_a_power_cut(train, monkeypatch, tmp_path):
    def run(owner, hook, crash, **settings):
        """Returns the folder of a run that failed there, and then went on to its end."""
        monkeypatch.setattr(owner, hook, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            train("half", **settings)
        monkeypatch.undo()
        runs = tmp_path / "runs"
        assert main(["--run.resume", "half", "--run.dir", str(runs)]) == 0
        return runs / "half"

    return run


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("step", [4, 7])
def test_an_epoch_that_had_ended_is_not_done_again_where_the_length_is_in_steps(
    train, after_a_power_cut, step, every
):
    shared = {"trainer__max_epochs": ..., "trainer__max_steps": 9}
    shared |= {"trainer__val_every_n_epochs": every} | PROBE
    _, whole = train("whole", **shared)

    def crash(self, trainer, *_):
        if trainer.global_step == step:
            raise RuntimeError("power cut")

    folder = after_a_power_cut(Interruption, "on_train_batch_end", crash, **shared)
    assert rows_of(folder) == rows_of(whole)
    for name in ("best.ckpt", "last.ckpt"):
        one, other = (read_run_checkpoint(each / "checkpoints" / name) for each in (folder, whole))
        assert_same(one["state_dict"], other["state_dict"])


def test_a_length_in_steps_that_ends_in_an_epoch_can_be_raised(train):
    shared = {"trainer__max_epochs": ..., "optim__schedule": "constant", "optim__warmup_epochs": 0}
    _, whole = train("whole", **shared, trainer__max_steps=9)
    _, folder = train("half", **shared, trainer__max_steps=5)
    words = ["--run.resume", "half", "--run.dir", str(folder.parent), "--trainer.max_steps", "9"]
    assert main(words) == 0
    assert_same(weights(folder), weights(whole))
    losses = [
        {step: (row["epoch"], row.get("train/loss")) for step, row in rows_of(each).items()}
        for each in (folder, whole)
    ]
    assert losses[0] == losses[1]


def test_a_second_ctrl_c_in_the_validation_of_an_epoch_loses_nothing_of_it(train, monkeypatch):
    _, whole = train("whole")
    original, validate = Interruption.on_train_batch_end, BarlowTwins.validation_step

    def interrupt(self, trainer, *rest):
        if trainer.global_step == 3:  # the last of the first epoch
            os.kill(os.getpid(), signal.SIGINT)
        original(self, trainer, *rest)

    def again(self, *batch):
        if self.trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return validate(self, *batch)

    monkeypatch.setattr(Interruption, "on_train_batch_end", interrupt)
    monkeypatch.setattr(BarlowTwins, "validation_step", again)
    code, half = train("half")
    assert code == 130
    monkeypatch.undo()
    assert main(["--run.resume", "half", "--run.dir", str(half.parent)]) == 0
    assert rows_of(half) == rows_of(whole)
    assert_same(weights(half), weights(whole))


def test_what_readouts_measured_is_written_before_the_checkpoint(train, after_a_power_cut):
    _, whole = train("whole", **PROBE)
    original = RunCheckpoints.save_checkpoint

    def crash(self, checkpoint, path, *rest, **named):
        original(self, checkpoint, path, *rest, **named)
        if Path(path).name == "last.ckpt" and checkpoint["global_step"] == 3:
            raise RuntimeError("power cut")

    folder = after_a_power_cut(RunCheckpoints, "save_checkpoint", crash, **PROBE)
    measured = {"val/knn_accuracy", "val/linear_accuracy"}
    assert measured <= rows_of(folder)[2].keys()
    assert {name: rows_of(folder)[2][name] for name in measured} == {
        name: rows_of(whole)[2][name] for name in measured
    }


def test_a_run_that_was_stopped_early_stays_stopped_and_says_so(train, said):
    shared = {"callbacks__early_stopping__enabled": "true", "optim__lr": 0.3}
    shared |= {"callbacks__early_stopping__patience": 1, "trainer__max_epochs": 12}
    _, folder = train("run", **shared)
    first, rows = summary(folder), rows_of(folder)
    assert 3 <= first["steps"] < 36
    again = ["--run.resume", "run", "--run.dir", str(folder.parent)]
    assert main(again) == 0
    assert length_of(folder) == (first["epochs"], first["steps"])
    assert rows_of(folder) == rows
    (words, again_said) = (line for line in said if line.startswith("early_stopping: no better"))
    assert words == again_said
    assert f"val/loss in 1 validation, so training ended at step {first['steps']}." in words
    assert main([*again, "--callbacks.early_stopping.patience", "3"]) == 0
    assert summary(folder)["steps"] > first["steps"]


@pytest.mark.parametrize(("steps", "epochs"), [(3, 1), (4, 2)])
def test_epochs_are_those_of_all_its_steps_if_none_is_left(train, steps, epochs):
    _, folder = train(trainer__max_steps=steps, trainer__max_epochs=...)
    assert length_of(folder) == (epochs, steps)
    assert main(["--run.resume", "run", "--run.dir", str(folder.parent)]) == 0
    assert length_of(folder) == (epochs, steps)


def length_of(folder: Path) -> tuple[int, int]:
    return summary(folder)["epochs"], summary(folder)["steps"]


def test_a_finished_run_can_be_trained_longer(train):
    _, folder = train("first")
    words = ["--run.resume", "first", "--run.dir", str(folder.parent), "--trainer.max_epochs", "3"]
    assert main(words) == 0
    assert summary(folder)["steps"] == 9


def test_max_steps_ends_the_schedule_with_the_run(train):
    _, folder = train("short", trainer__max_steps=4, optim__warmup_epochs=0.34)
    rows = read_metrics(folder / "metrics.csv")
    rates = [rows[step]["train/lr"] for step in range(4)]
    assert summary(folder)["steps"] == 4
    assert rates[-1] == pytest.approx(0.001 * rates[1], rel=0.05) or rates[-1] < rates[1]
    assert rates[0] < rates[1] > rates[2] > rates[3]


def test_a_loss_that_is_no_number_stops_before_the_weights(train, capsys):
    code, folder = train("nan", optim__lr=1e30, optim__warmup_epochs=0)
    assert code == 1
    found = summary(folder)
    assert found["status"] == "failed"
    assert "The loss is" in found["reason"]
    assert f"step {found['steps']}" in found["reason"]
    assert "learning rate" in found["reason"]
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["barlow_twins", "lejepa", "segmentation"])
def test_a_validation_after_the_step_that_broke_the_weights_says_so(train, capsys, task):
    broken = {"optim__lr": 1e30, "optim__warmup_epochs": 0, "trainer__limit_train_batches": 1}
    held_out = {"data__val_fraction": 0.3} if task == "segmentation" else {}
    code, folder = train("nan", task=task, **broken, **held_out)
    assert code == 1
    found = summary(folder)
    assert found["status"] == "failed"
    assert "The validation loss is" in found["reason"]
    assert "step 1, learning rate" in found["reason"]
    assert found["readout_failures"] == {}
    assert "FAILED" in capsys.readouterr().out


def test_nan_keeps_the_last_good_checkpoint(train, monkeypatch):
    import agents.barlow_twins as agent

    original = agent.barlow_twins_loss
    calls = []

    def poisoned(*arguments):
        calls.append(1)
        factor = float("nan") if len(calls) > 5 else 1.0  # in the second epoch
        return original(*arguments) * factor

    monkeypatch.setattr(agent, "barlow_twins_loss", poisoned)
    code, folder = train("nan")
    assert code == 1
    assert "last good checkpoint" in summary(folder)["reason"]
    assert all(torch.isfinite(value).all() for value in weights(folder).values())


def killed_by_itself(monkeypatch) -> None:
    original = ImageFiles.__getitem__

    def dying(self, draw):
        if draw[0] == 1 and get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, draw)

    monkeypatch.setattr(ImageFiles, "__getitem__", dying)


def killed_during_a_step(monkeypatch) -> None:
    def kill(self, trainer, *_):
        if trainer.global_step == 4:
            for worker in multiprocessing.active_children():
                worker.kill()

    monkeypatch.setattr(Interruption, "on_train_batch_end", kill)


@pytest.mark.parametrize("killed", [killed_by_itself, killed_during_a_step])
def test_a_killed_worker_is_said_and_the_advice_works(train, monkeypatch, capsys, killed):
    killed(monkeypatch)
    code, folder = train("killed", data__num_workers=1)
    assert code == 1
    found = summary(folder)
    assert found["status"] == "failed"
    assert "killed by signal 9, most often because memory ran out." in found["reason"]
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    advice = f"--run.resume killed --run.dir {folder.parent} --data.num_workers 0"
    assert advice in said.replace(" --run", "  --run").replace("  ", " ")
    monkeypatch.undo()
    assert main(advice.split()) == 0
    assert summary(folder)["status"] == "finished"


_LOSES_A_PROCESS = """
import subprocess, sys, threading
from pathlib import Path
from types import SimpleNamespace
from callbacks.lost_process import LostProcess
from utils.run_folder import RunFolder

procs = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
launcher = SimpleNamespace(procs=procs)
LostProcess(RunFolder(Path(sys.argv[1]))).setup(
    SimpleNamespace(strategy=SimpleNamespace(launcher=launcher)), None, "fit"
)
procs[0].kill()
threading.Event().wait()  # as in a collective that never ends
"""


def test_a_killed_process_ends_the_others_in_words(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _LOSES_A_PROCESS, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Process 1 of 3 (counted from 0) was killed by signal 9" in line
    assert summary(tmp_path)["status"] == "failed"
    assert summary(tmp_path)["reason"] in line


def error_of(capsys) -> str:
    text = capsys.readouterr().err
    assert "error: " in text
    assert "Traceback" not in text
    return text


def test_a_name_is_free_again_where_a_setting_was_refused(train, capsys):
    maps = {"callbacks__attention_maps__enabled": "true"}
    assert train("first", **maps, callbacks__attention_maps__image_size=20)[0] == 2
    assert "--callbacks.attention_maps.image_size 20" in error_of(capsys)
    assert train("first", **maps, callbacks__attention_maps__image_size=16)[0] == 0


def test_an_existing_name_is_refused(train, capsys):
    _, folder = train("first")
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert train("first", optim__lr=0.1)[0] == 2
    assert "never overwritten" in error_of(capsys)
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_folder_that_cannot_be_written(train, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert train("first", run__dir=tmp_path / "file")[0] == 2
    assert "cannot be written" in error_of(capsys)


def test_a_missing_root(train, tmp_path, capsys):
    code, folder = train("first", data__name="voc", data__root=tmp_path / "nowhere")
    assert code == 2
    assert "No Pascal VOC" in error_of(capsys)
    assert not folder.exists()
    code, _ = train("first", data__name="image_folder", data__root=tmp_path / "nowhere")
    assert code == 2
    assert "There is no folder" in error_of(capsys)


def test_a_batch_larger_than_the_data_leaves_no_folder(train, capsys):
    code, folder = train("first", data__batch_size=100)
    assert code == 2
    assert "larger than the data set: 24 images" in error_of(capsys)
    assert not folder.exists()


def test_debug_shows_where(train):
    with pytest.raises(ValueError, match="larger than the data set"):
        train("first", "--debug", data__batch_size=100)


def test_resume_with_another_architecture(train, capsys):
    _, folder = train("first")
    words = ["--run.resume", "first", "--run.dir", str(folder.parent)]
    assert main([*words, "--backbone.depth", "3"]) == 2
    assert "another architecture" in error_of(capsys)
    assert main([*words, "--barlow_twins.hidden_dim", "8"]) == 2
    assert "projector.0.weight is (16, 24) there and (8, 24)" in error_of(capsys)


def test_weights_of_another_architecture(train, capsys):
    train("first")
    assert train("second", backbone__weights="run:first", backbone__depth=1)[0] == 2
    assert "another architecture" in error_of(capsys)


def test_one_corrupt_image_of_many_is_named_many_are_an_error(train, image_folder, capsys):
    files = sorted(image_folder.rglob("*.png"))
    for index in range(100):
        (image_folder / f"copy{index}.png").write_bytes(files[index % 20].read_bytes())
    files[5].write_bytes(files[5].read_bytes()[:200])
    shared = {"data__name": "image_folder", "data__root": image_folder, "trainer__max_epochs": 1}
    code, folder = train("one", **shared, data__num_workers=1)
    assert code == 0
    assert summary(folder)["unreadable_images"] == 1
    assert files[5].name in summary(folder)["unreadable_names"][0]
    assert "1 image could not be read" in capsys.readouterr().out
    assert main(["--run.resume", "one", "--run.dir", str(folder.parent)]) == 0
    assert summary(folder)["unreadable_images"] == 1
    for file in files[6:12]:
        file.write_text("no image")
    code, folder = train("many", **shared)
    assert code == 2
    assert "more than 1%" in error_of(capsys)
    assert summary(folder)["status"] == "failed"


def test_all_images_mark_the_run(train, shapes_root, capsys):
    _, folder = train(
        "all", data__name="voc", data__split="all", data__root=shapes_root, trainer__max_epochs=1
    )
    assert summary(folder)["transductive"] is True
    assert "TRANSDUCTIVE" in capsys.readouterr().out
    assert main(["--compare", "all", "--run.dir", str(folder.parent)]) == 0
    assert "all*" in capsys.readouterr().out


def test_wandb_without_a_key_goes_offline(train, monkeypatch, caplog):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent")
    code, folder = train(
        "offline", logger__mode="auto", trainer__max_epochs=1, callbacks__views__enabled="true"
    )
    assert code == 0
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert list(folder.glob("wandb/offline-run-*/files/media/images/**/*.png"))
    assert yaml.safe_load((folder / "environment.json").read_text())["wandb_id"]


def test_wandb_with_a_key_but_no_network_goes_offline(train, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 20 + "f" * 20)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    code, folder = train("unplugged", logger__mode="auto", trainer__max_epochs=1)
    assert code == 0
    assert list(folder.glob("wandb/offline-run-*"))
    for file in folder.rglob("*"):
        if file.is_file():
            assert b"0" * 20 + b"f" * 20 not in file.read_bytes(), f"the key is in {file}"
    assert train("online", logger__mode="online", trainer__max_epochs=1)[0] == 2


def test_evaluate_export_and_compare(train, capsys):
    _, first = train("first")
    train("second", optim__lr=0.01)
    where = ["--run.dir", str(first.parent)]
    assert main(["--evaluate", "first", *where]) == 0
    assert summary(first)["evaluate/loss"] == pytest.approx(
        min(row["val/loss"] for row in read_metrics(first / "metrics.csv").values()
            if "val/loss" in row), rel=1e-4,
    )  # fmt: skip
    assert main(["--export", "first", *where]) == 0
    exported = load_file(first / "checkpoints" / "backbone.safetensors")
    inner = {k.removeprefix("backbone.net."): v for k, v in weights(first).items()
             if k.startswith("backbone.")}  # fmt: skip
    assert_same(exported, inner)
    assert "pos_embed" in exported
    capsys.readouterr()
    assert main(["--compare", "first", "second", *where]) == 0
    table = capsys.readouterr().out
    assert "| optim.lr |" in table
    assert "data.batch_size" not in table
    assert "**val/loss**" in table
    (place,) = first.parent.glob("comparisons/first-vs-second-*")
    assert (place / "table.md").read_text().strip() in table
    assert Image.open(place / "curves.png").width > 500


def test_a_run_is_called_after_its_experiment(train, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("trainer: {max_epochs: 1}\n")
    for name in ("mine", "mine-2"):
        words = ("--experiment", str(file))
        assert train(name, *words, run__name=..., trainer__max_epochs=...)[0] == 0
        assert summary(tmp_path / "runs" / name)["epochs"] == 1
    of_a_run = tmp_path / "runs" / "mine" / "hparams.yaml"
    assert main(["--experiment", str(of_a_run)]) == 0
    assert summary(tmp_path / "runs" / "mine-3")["epochs"] == 1


def test_a_run_without_validation(train, image_folder):
    shared = {"data__name": "image_folder", "data__root": image_folder}
    code, folder = train("unvalidated", **shared, data__val_fraction=0)
    assert code == 0
    assert "val/loss" not in summary(folder)
    assert "train/loss" in summary(folder)
    assert train("off", trainer__limit_val_batches=0)[0] == 0
    code, folder = train(
        "early", trainer__limit_val_batches=0, callbacks__early_stopping__enabled="true"
    )
    assert code == 2
    assert not folder.exists()


def test_tuned_and_resolved_settings_travel_in_the_checkpoint(train):
    _, folder = train("first", trainer__tune_batch_size="true", trainer__max_epochs=1)
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    saved = yaml.safe_load((folder / "hparams.yaml").read_text())
    tuned = checkpoint["hyper_parameters"]["trainer"]
    assert (tuned["chunk_size"], tuned["tune_batch_size"]) == (None, False)  # the whole batch fits
    assert checkpoint["hyper_parameters"]["optim"] == saved["optim"]


def test_the_parts_of_a_run_take_no_longer_than_the_run(train):
    within_steps = {"enabled": "true", "every_n_steps": 1}
    agreement = {f"callbacks__gradient_agreement__{k}": v for k, v in within_steps.items()}
    _, folder = train("run", trainer__max_epochs=4, **agreement)
    found = summary(folder)
    parts = ("preparation", "training", "validation", "readout", "test")
    took = sum(found[f"{part}_seconds"] for part in parts)
    assert found["readout_seconds"] > 0
    each = [taken for name, taken in found.items() if name.startswith("readout_seconds/")]
    assert each == sorted(each, reverse=True)
    assert sum(each) == pytest.approx(found["readout_seconds"], abs=0.05 * (len(each) + 1))
    assert took == pytest.approx(found["wall_seconds"], abs=0.3)  # each is rounded to a tenth


def test_what_comes_before_the_first_step_is_counted(train, monkeypatch, capsys):
    clock = SimpleNamespace(now=0.0)

    def slowly(*arguments):
        clock.now += 60
        cache_features(*arguments)

    monkeypatch.setattr("agents.segmentation.cache_features", slowly)
    monkeypatch.setattr("agents.trainer.Stopwatch", lambda: Stopwatch(lambda: clock.now))
    fixed = {"backbone__freeze": "true", "data__views": "fixed", "trainer__max_epochs": 1}
    _, folder = train("run", task="segmentation", **fixed)
    found = summary(folder)
    assert found["preparation_seconds"] == found["wall_seconds"] == 60
    assert "preparation 60 s" in " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize(
    ("task", "deterministic", "tried_out"),
    [
        ("barlow_twins", False, True),
        ("barlow_twins", True, False),
        ("segmentation", False, False),
    ],
)
def test_convolutions_are_tried_out_where_images_have_few_sizes(
    train, task, deterministic, tried_out
):
    given = {"task": task, "trainer__max_steps": 1, "run__deterministic": str(deterministic)}
    try:
        assert train("run", **given)[0] == 0
        assert torch.backends.cudnn.benchmark is tried_out
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False


@pytest.mark.parametrize(
    ("task", "chunk", "remedy"),
    [
        ("barlow_twins", None, "--trainer.chunk_size 4"),
        ("dino", 4, "--trainer.chunk_size 2"),
        ("segmentation", None, "smaller --data.batch_size"),
    ],
)
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        MemoryError(),
    ],
    ids=["cuda", "cudnn", "host"],
)
def test_exhausted_memory_ends_a_run_in_words(
    train, monkeypatch, capsys, task, chunk, remedy, error
):
    def exhausted(*_: object) -> None:
        raise error

    monkeypatch.setattr(load(TASKS[task]), "training_step", exhausted)
    more = {} if chunk is None else {"trainer__chunk_size": chunk}
    code, folder = train(task=task, may_fail=True, **more)
    assert code == 1
    assert summary(folder)["status"] == "failed"
    assert "Memory is exhausted" in summary(folder)["reason"]
    assert remedy in " ".join(capsys.readouterr().out.split())


def test_memory_exhausted_before_the_first_step_is_said_in_a_line(train, monkeypatch, capsys):
    def exhausted(device: object) -> float:  # another program has all of it
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr("agents.chunks.free_mb", exhausted)
    code, _ = train()
    assert code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: Memory is exhausted (CUDA error: out of memory).")


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("CUDA-capable device(s) is/are busy or unavailable", "nvidia-smi names the programs"),
        ("CUDA driver version is insufficient for CUDA runtime version", "update it, or pip"),
        ("no kernel image is available for execution on the device", "requirements-pascal.txt"),
        ("device-side assert triggered", "--trainer.accelerator cpu"),
        ("uncorrectable ECC error encountered", "restart the machine"),
        ("an illegal memory access was encountered", "restart the machine"),
        ("unspecified launch failure", "restart the machine"),
    ],
)
def test_a_gpu_that_fails_before_the_first_step_is_said_in_a_line(
    monkeypatch, tmp_path, capsys, said, advice
):
    def fails(*_: object) -> None:  # whoever asks it first
        raise RuntimeError(f"CUDA error: {said}\nFor debugging consider passing …")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", fails)
    assert main(["--run.dir", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(f"(CUDA error: {said})")
    assert advice in line


def test_a_gpu_that_fails_keeps_what_was_trained_and_says_how_it_goes_on(
    train, monkeypatch, capsys
):
    step = BarlowTwins.training_step

    def fails(self: BarlowTwins, batch: Any, index: int) -> Any:
        if self.trainer.current_epoch == 1:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED")
        return step(self, batch, index)

    monkeypatch.setattr(BarlowTwins, "training_step", fails)
    code, folder = train()
    assert code == 1
    assert "other programs hold the GPU's memory" in summary(folder)["reason"]
    said = " ".join(capsys.readouterr().out.split())
    assert "--run.resume run" in said
    monkeypatch.undo()
    assert main(["--run.resume", "run", "--run.dir", str(folder.parent)]) == 0
    assert summary(folder)["status"] == "finished"


def test_a_loss_that_no_chunk_makes_fit_is_told_what_makes_it_smaller(train, monkeypatch, capsys):
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(load(TASKS["dino"]), "training_step", exhausted)
    # Two teacher's logits and targets of eight images; a chunk of the student's, and what passes.
    held = 64 * (4 * ((2 * 8 + 2) * 2 + (8 + 2)))
    for share, named in ((0.5, False), (0.7, True)):
        monkeypatch.setattr("agents.fitting.peak_mb", lambda _, s=share: held / s / 2**20)
        code, folder = train(
            f"run{share}",
            task="dino",
            dino__out_dim=64,
            dino__head_batch_norm="false",
            trainer__chunk_size=4,
            may_fail=True,
        )
        assert code == 1
        reason = summary(folder)["reason"]
        assert ("needs a smaller --data.batch_size or --dino.out_dim" in reason) is named
        assert ("--trainer.chunk_size 2" in capsys.readouterr().out) is not named


def test_of_several_processes_each_has_fewer_images_to_take_in_chunks(tmp_path):
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    given = {"trainer.devices": 2, "data.batch_size": 16, "trainer.chunk_size": 16}
    agent: Any = SimpleNamespace(trains=True, settings=parsed(options(given)))
    agent.held_by_loss = lambda images, chunk: 0
    loaders = dict.fromkeys(("train_dataloader", "val_dataloaders", "test_dataloaders"))
    trainer: Any = SimpleNamespace(fit=exhausted, world_size=2, **loaders)
    data: Any = None
    fitting = Fitting(trainer, agent, data, RunFolder(tmp_path), None, Stopwatch(), CPU)
    fitting.run()
    assert fitting.end.advice == "--trainer.chunk_size 4"


def test_a_test_that_does_not_fit_into_memory_leaves_the_training_done(train, monkeypatch, capsys):
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(load(TASKS["segmentation"]), "test_step", exhausted)
    code, folder = train(task="segmentation", trainer__max_epochs=1, may_fail=True)
    assert code == 1
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Training is done and saved; what is left is the test." in said
    assert "a smaller --segmentation.test_window" in said
    assert "--data.batch_size" not in said
    monkeypatch.undo()
    before = weights(folder)
    go_on = ["--run.resume", "run", "--run.dir", str(folder.parent)]
    assert main([*go_on, "--segmentation.test_window", "32"]) == 0
    assert "test/miou" in summary(folder)
    assert_same(weights(folder), before)


def test_ctrl_c_before_training_is_said_in_a_word(train, monkeypatch, capsys):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(load(DATASETS["shapes"]), "prepare", interrupted)
    assert train()[0] == 130
    assert capsys.readouterr().err == "Interrupted.\n"
    with pytest.raises(KeyboardInterrupt):
        train("run", "--debug")


@pytest.fixture
def exhausting(monkeypatch):
    """Barlow Twins whose step never fits into memory."""

    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(load(TASKS["barlow_twins"]), "training_step", exhausted)


def test_what_a_compiled_run_is_told_to_go_on_with_can_be_given(train, exhausting, capsys):
    code, folder = train(trainer__compile="true", may_fail=True)
    assert code == 1
    remedy = "--trainer.chunk_size 4 --trainer.compile false"
    assert remedy in " ".join(capsys.readouterr().out.split())
    go_on = ["--run.resume", "run", "--run.dir", str(folder.parent), *remedy.split()]
    assert isinstance(parse(go_on), Command)


def test_nothing_smaller_than_the_smallest_chunk_is_advised(train, exhausting, capsys):
    code, folder = train(trainer__chunk_size=2, may_fail=True)
    assert code == 1
    assert "needs a smaller backbone or --data.image_size" in summary(folder)["reason"]
    assert "--trainer.chunk_size" not in capsys.readouterr().out


def test_a_pretraining_without_validation_images_cannot_be_evaluated(train, capsys):
    _, folder = train(trainer__max_epochs=1, trainer__limit_val_batches=0)
    assert main(["--evaluate", "run", "--run.dir", str(folder.parent)]) == 2
    said = capsys.readouterr().err
    assert "is judged on validation images, and there are none" in said
    assert "--trainer.limit_val_batches" in said


def test_a_network_that_does_not_fit_into_memory_is_said(train, capsys):
    settings = {"task": "segmentation", "backbone__name": "vit_tiny", "backbone__depth": 1}
    assert train("big", **settings, backbone__embed_dim=..., backbone__patch_size=10**6)[0] == 2
    assert "of these settings does not fit into memory" in error_of(capsys)


def test_warm_up_counts_the_short_step_at_the_end_of_an_epoch(train):
    code, folder = train(
        trainer__accumulate=2,  # three batches an epoch: two steps
        trainer__max_epochs=3,
        optim__warmup_epochs=2.0,
        optim__lr=0.01,
        optim__schedule="constant",
    )
    assert code == 0
    assert summary(folder)["steps"] == 6
    rows = read_metrics(folder / "metrics.csv")
    rates = [row["train/lr"] for _, row in sorted(rows.items()) if "train/lr" in row]
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])
