"""Benchmarks that others are asked to run do run."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, matrices
from benchmarks.exact_batches import problem

GPU = [sys.executable, str(Path(__file__).parents[1] / "benchmarks" / "gpu.py")]


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
    assert tuned["outcome"].startswith("tune_batch_size: chunk_size ")


@pytest.mark.slow
def test_what_the_time_does_not_suffice_for_stays_empty(tmp_path):
    out = tmp_path / "gpu.json"
    words = ["--accelerator", "cpu", "--toy", "--minutes", "0", "--out", str(out)]
    assert subprocess.run([*GPU, *words], capture_output=True).returncode == 0
    found = json.loads(out.read_text())
    rows = [row for name in ("arithmetic", "runs", "steps") for row in found[name]]
    assert {row["outcome"] for row in rows} == {"no time left"}
