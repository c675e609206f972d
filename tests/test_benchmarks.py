"""Benchmarks that others are asked to run do run."""

import json
import math
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu, matrices
from benchmarks.exact_batches import problem
from benchmarks.training_step import Clock, settings_of, step_cost
from utils.device import use_same_numbers

ROOT = Path(__file__).parents[1]
GPU = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_benchmark_says_so():
    done = subprocess.run(GPU, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "benchmarks/gpu.py: torch finds no NVIDIA GPU here.\n"


@pytest.mark.parametrize(
    ("code", "said", "expected"),
    [
        (-9, "", "out of memory"),
        (137, "", "out of memory"),
        (
            1,
            "Traceback …\nRuntimeError: DefaultCPUAllocator: can't allocate memory",
            "out of memory",
        ),
        (
            1,
            "Traceback …\nValueError: 97 is no multiple of 16\n",
            "ValueError: 97 is no multiple of 16",
        ),
        (3, "", "exit code 3"),
    ],
)
def test_a_measurement_that_failed_says_why(code, said, expected):
    assert problem(subprocess.CompletedProcess([], code, "", said)) == expected


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
        (RuntimeError("cuDNN: unable to find an engine to execute"), "out of memory"),
        (ValueError("no such size\nor so"), "ValueError: no such size"),
    ],
)
def test_a_row_that_fails_says_why(error, outcome):
    def work():
        raise error

    assert gpu.attempt(work, math.inf, torch.device("cpu")) == {"outcome": outcome}


def test_runs_that_end_alike_have_taken_steps(train):
    _, folder = train("run", trainer__max_steps=2)
    bench = gpu.Bench(torch.device("cpu"), gpu.TOY, "32-true")
    assert bench.same(lambda *_: (folder, folder))["steps taken"] == "2 of 2"
    file = folder / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["optimizer_states"][0]["state"] = {}  # as where all have overflowed
    torch.save(checkpoint, file)
    assert bench.same(lambda *_: (folder, folder))["steps taken"] == "0 of 2"


def test_measuring_a_gpu_needs_no_package_that_it_says_it_does_not():
    code = """import sys
sys.modules.update(dict.fromkeys(("wandb", "vit_pytorch", "segmentation_models_pytorch")))
import benchmarks.gpu, tests.test_gpu"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_only_waits_of_the_step_are_counted(monkeypatch):
    notice = "Synchronization debug mode is a prototype feature and does not yet detect all "
    notice += "synchronizing operations"  # torch's own, the first time in a process

    def switch(mode: str) -> None:
        if mode == "warn":
            warnings.warn(notice, stacklevel=1)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", switch)
    clock, trainer = Clock(torch.device("cuda"), 5), SimpleNamespace(global_step=1)
    shown: Any = trainer
    clock.on_train_batch_start(shown)
    for _ in range(3):
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
    trainer.global_step = 2
    clock.on_train_batch_end(shown)
    assert clock.waits == 3


def test_steps_are_measured_with_fused_attention_whatever_was_run_before():
    use_same_numbers(True, torch.device("cuda"))
    words = ["--backbone.name", "vit_demo", "--data.image_size", "16", "--data.batch_size", "4"]
    hparams = settings_of(*words, "--trainer.chunk_size", "null", "--trainer.precision", "32-true")
    try:
        assert step_cost(hparams, torch.device("cpu"), 1).images_per_second > 0
        assert torch.backends.cuda.flash_sdp_enabled()
    finally:
        use_same_numbers(False, torch.device("cuda"))


def test_tests_that_are_not_through_in_time_have_said_something(monkeypatch):
    def late(command, timeout, **_):
        said = "tests/test_gpu.py::test_a PASSED\ntests/test_gpu.py::test_b FAILED\ntests/test"
        raise subprocess.TimeoutExpired(command, timeout, output=said.encode())

    monkeypatch.setattr(subprocess, "run", late)
    assert gpu.correctness(120.0).splitlines() == [
        "tests/test_gpu.py::test_b FAILED",
        "not through after 120 s: 1 passed",
    ]


def test_matrices_of_a_run_with_head_information(train, tmp_path, monkeypatch, capsys):
    _, folder = train(
        "run",
        trainer__max_steps=1,
        head_information__weight=0.1,
    )
    words = [str(folder), "--samples", "8", "--out", str(tmp_path / "matrices.png")]
    monkeypatch.setattr(sys, "argv", ["matrices.py", *words])
    matrices.main()
    untrained, trained = capsys.readouterr().out.splitlines()[-4:-2]
    assert untrained.startswith("| before training | 0 | ")
    assert trained.startswith("| run | 1 | ")
    assert (tmp_path / "matrices.png").exists()


@pytest.mark.slow
def test_every_row_of_the_benchmark_of_a_gpu_runs_at_toy_size(tmp_path):
    out = tmp_path / "gpu.json"
    words = ["--accelerator", "cpu", "--toy", "--minutes", "60", "--out", str(out)]
    done = subprocess.run([*GPU, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert [len(found[name]) for name in ("arithmetic", "runs", "steps")] == [3, 3, 7]
    assert all(row["images/s"] > 0 for row in found["steps"])
    *same, tuned = found["runs"]
    for row in same:
        equal, of, all_of_them = row["equal tensors"].split()
        assert (of, equal) == ("of", all_of_them)
        steps, of, all_of_them = row["steps taken"].split()
        assert (of, steps) == ("of", all_of_them) != ("of", "0")
    assert tuned["outcome"].startswith("tune_batch_size: chunk_size ")


@pytest.mark.slow
def test_what_the_time_does_not_suffice_for_stays_empty(tmp_path):
    out = tmp_path / "gpu.json"
    words = ["--accelerator", "cpu", "--toy", "--minutes", "0", "--out", str(out)]
    assert subprocess.run([*GPU, *words], capture_output=True).returncode == 0
    found = json.loads(out.read_text())
    rows = [row for name in ("arithmetic", "runs", "steps") for row in found[name]]
    assert {row["outcome"] for row in rows} == {"no time left"}
