"""Benchmarks that others are asked to run do run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

GPU = [sys.executable, str(Path(__file__).parents[1] / "benchmarks" / "gpu.py")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_benchmark_says_so():
    done = subprocess.run(GPU, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "benchmarks/gpu.py: torch finds no NVIDIA GPU here.\n"


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
