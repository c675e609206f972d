"""Benchmarks this framework on a GPU in ten minutes: section 4 of RESULTS.md.

    python benchmarks/gpu.py                          tables as Markdown, and gpu.json
    python benchmarks/gpu.py --accelerator cpu --toy  every row at toy size, to see that it works

Images are random and in pinned memory, as in a run that never waits for its loader. Memory is
limited to that of a small GPU. A row says if it does not fit, fails or gets no time. The tests that
need a GPU come last, and have at least two minutes. It needs all of requirements.txt but wandb,
vit-pytorch and segmentation-models-pytorch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.training_step import settings_of, step_cost, synchronise
from config.hparams import Hparams
from config.rules import possible_on
from config.settings_tree import leaves
from main import main as run_main
from main import set_up_allocator
from utils.console import quiet_libraries
from utils.device import device_name, resolve_precision
from utils.memory import free_unused, is_out_of_memory
from utils.run_checkpoints import read_run_checkpoint
from utils.text import markdown

ROOT = Path(__file__).parents[1]
Row = dict[str, Any]
_PRODUCTS = {
    "32-true": torch.float32,
    "16-mixed": torch.float16,
    "bf16-mixed": torch.bfloat16,
}


@dataclass(frozen=True)
class Scale:
    """The sizes of everything."""

    backbones: tuple[str, ...] = ("vit_small", "resnet50")
    side: int = 224
    batches: tuple[int, ...] = (64, 256, 1024)
    chunks: tuple[int | None, ...] = (None, 32, 64)
    precisions: tuple[str, ...] = ("32-true", "16-mixed", "bf16-mixed")  # of the first rows
    matrix: int = 8192
    steps: int = 10
    gigabytes: float = 10.0


TOY = Scale(("vit_tiny", "resnet18"), 32, (8,), (None, 4), ("bf16-mixed",), 256, 2)


@dataclass(frozen=True)
class Bench:
    """What all rows share."""

    device: torch.device
    scale: Scale
    precision: str  # the automatic one
    peaks: dict[torch.dtype, float] = field(default_factory=dict)  # measured FLOP/s

    @property
    def on(self) -> list[str]:
        """Options of a run on this device."""
        return ["--trainer.accelerator", "gpu" if self.device.type == "cuda" else "cpu"]

    def steps(self) -> Iterator[tuple[Row, Callable[[], Row]]]:
        """Yields training steps: method, backbone, N, chunk, precision."""
        small, *_ = self.scale.backbones
        least = self.scale.batches[0]
        for precision in self.scale.precisions:
            yield self._step("barlow_twins", small, least, None, precision)
        for chunk in self.scale.chunks[:2]:
            yield self._step("dino", small, least, chunk, self.precision)
        for batch in self.scale.batches:  # the longest last
            for backbone in self.scale.backbones:
                for chunk in self.scale.chunks:
                    yield self._step("barlow_twins", backbone, batch, chunk, self.precision)

    def _step(
        self, task: str, backbone: str, batch: int, chunk: int | None, precision: str
    ) -> tuple[Row, Callable[[], Row]]:
        row = {
            "method": task,
            "backbone": backbone,
            "N": batch,
            "chunk": chunk or "whole",
            "precision": precision,
        }
        return row, lambda: self.measure(task, backbone, batch, chunk, precision)

    def measure(
        self, task: str, backbone: str, batch: int, chunk: int | None, precision: str
    ) -> Row:
        """Returns images per second, share of the measured peak FLOP/s, memory, waits."""
        words = ["--task", task, "--backbone.name", backbone, "--optim.lr", "1e-5"]
        words += ["--data.image_size", str(self.scale.side), "--data.batch_size", str(batch)]
        words += ["--trainer.chunk_size", str(chunk or "null"), "--trainer.precision", precision]
        cost = step_cost(settings_of(*words), self.device, self.scale.steps)
        peak = self.peaks.get(_PRODUCTS[precision])
        return {
            "images/s": round(cost.images_per_second, 1),
            "TFLOP/s": round(cost.flops_per_second / 1e12, 3),
            "MFU": f"{cost.flops_per_second / peak:.1%}" if peak else "",
            "MiB": round(cost.peak_mb),
            "waits": "" if cost.waits is None else cost.waits,
        }

    def arithmetic(self) -> Iterator[tuple[Row, Callable[[], Row]]]:
        """Yields matrix products, whose FLOP/s are the peak that steps are compared with."""
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            yield {"product": str(dtype).removeprefix("torch.")}, partial(self.product, dtype)

    def product(self, dtype: torch.dtype) -> Row:
        """Returns TFLOP/s of the product of square matrices."""
        torch.set_float32_matmul_precision("highest")
        side = self.scale.matrix
        one = torch.randn(side, side, device=self.device, dtype=dtype)
        seconds = best_of(3, lambda: [one @ one for _ in range(10)], self.device)
        self.peaks[dtype] = 10 * 2 * side**3 / seconds
        return {"side": side, "TFLOP/s": round(self.peaks[dtype] / 1e12, 3)}

    def runs(self) -> Iterator[tuple[Row, Callable[[], Row]]]:
        """Yields whole runs of the demonstration, `python main.py`."""
        yield {"run": "the same, deterministic, twice"}, lambda: self.same(twice)
        yield (
            {"run": "stopped after one epoch and resumed, against two epochs"},
            lambda: self.same(resumed),
        )
        yield {"run": "tune_batch_size"}, self.tuned

    def same(self, pair: Callable[[str, list[str]], tuple[Path, Path]]) -> Row:
        """Returns how many tensors two runs have in common at their end, and the steps taken.

        Float16 skips the first steps, which overflow: the runs are longer than four steps.
        """
        with TemporaryDirectory() as folder:
            words = ["--trainer.limit_train_batches", "12", "--trainer.limit_val_batches", "1"]
            words += ["--run.deterministic", "true"]
            one, other = (last_checkpoint(run) for run in pair(folder, [*self.on, *words]))
        weights, others = one["state_dict"], other["state_dict"]
        different = [name for name in weights if not torch.equal(weights[name], others[name])]
        equal = f"{len(weights) - len(different)} of {len(weights)}"
        return {"equal tensors": equal, "steps taken": f"{taken(one)} of {one['global_step']}"}

    def tuned(self) -> Row:
        """Returns what the tuner chooses on this GPU."""
        with TemporaryDirectory() as folder:
            words = ["--trainer.tune_batch_size", "true", "--trainer.max_steps", "4"]
            said = trained(folder, "tuned", [*self.on, *words])
        line = next(line for line in said.splitlines() if line.startswith("tune_batch_size"))
        return {"outcome": line}


# Callbacks that only observe are switched off: they take time and do not change the results.
_PICTURES = [
    leaf.path
    for leaf in leaves(Hparams().callbacks, "callbacks.")
    if leaf.path.endswith(".enabled")
    and leaf.value
    and possible_on(Hparams, leaf.path, "barlow_twins")
]


def best_of(times: int, work: Callable[[], Any], device: torch.device) -> float:
    """Returns the shortest time in seconds, after a first call that warms up."""
    taken = []
    for _ in range(times + 1):
        synchronise(device)
        started = time.perf_counter()
        work()
        synchronise(device)
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def trained(folder: str, name: str, words: list[str]) -> str:
    """Trains or resumes the demonstration, and returns what was printed.

    Raises:
        RuntimeError: it did not finish.
    """
    own = [] if "--run.resume" in words else ["--run.name", name]
    quiet = ["--run.dir", folder, "--logger.mode", "disabled"]
    quiet += [word for path in _PICTURES for word in (f"--{path}", "false")]
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = run_main([*quiet, *own, *words])
    if code:
        raise RuntimeError(said.getvalue()[-300:])
    return said.getvalue()


def twice(folder: str, words: list[str]) -> tuple[Path, Path]:
    """Trains the same run twice."""
    for name in ("one", "other"):
        trained(folder, name, [*words, "--trainer.max_epochs", "1"])
    return Path(folder, "one"), Path(folder, "other")


def resumed(folder: str, words: list[str]) -> tuple[Path, Path]:
    """Trains two epochs in one run, and in another that is resumed after the first."""
    constant = ["--optim.schedule", "constant", "--optim.warmup_epochs", "0"]
    trained(folder, "one", [*words, *constant, "--trainer.max_epochs", "2"])
    trained(folder, "other", [*words, *constant, "--trainer.max_epochs", "1"])
    trained(folder, "other", ["--run.resume", "other", "--trainer.max_epochs", "2"])
    return Path(folder, "one"), Path(folder, "other")


def last_checkpoint(run: Path) -> Mapping[str, Any]:
    """Returns the last checkpoint of a run."""
    return read_run_checkpoint(run / "checkpoints" / "last.ckpt")


def taken(checkpoint: Mapping[str, Any]) -> int:
    """Returns how many steps its AdamW has taken."""
    states = checkpoint["optimizer_states"][0]["state"].values()
    return max((int(state["step"]) for state in states), default=0)


def correctness(seconds: float) -> str:
    """Runs the tests that need a GPU for at most `seconds`; returns failures and the last line."""
    # Only their file: others import packages that a machine for measuring may not have.
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/test_gpu.py", "-vv"]
    command += ["-p", "no:cacheprovider"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired as late:
        judged = (late.stdout or b"").decode(errors="replace").splitlines()
        failed = [line for line in judged if " FAILED" in line or " ERROR" in line]
        passed = sum(" PASSED" in line for line in judged)
        return "\n".join([*failed, f"not through after {seconds:.0f} s: {passed} passed"])
    lines = (done.stdout.strip() or done.stderr.strip()).decode(errors="replace").splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return "\n".join([*failed, lines[-1] if lines else f"exit code {done.returncode}"])


def attempt(work: Callable[[], Row], deadline: float, device: torch.device) -> Row:
    """Returns what was measured, or why nothing was."""
    if time.monotonic() > deadline:
        return {"outcome": "no time left"}
    try:
        return work()
    except Exception as error:  # the other rows go on
        if is_out_of_memory(error):
            return {"outcome": "out of memory"}
        return {"outcome": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    finally:
        free_unused(device)


def table(rows: list[Row]) -> str:
    """Returns rows as a Markdown table, with the columns of all rows."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return markdown(columns, [[str(row.get(name, "")) for name in columns] for row in rows])


def main() -> int:
    """Measures, prints and saves everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--accelerator", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--toy", action="store_true", help="small sizes")
    parser.add_argument("--minutes", type=float, default=10, help="start no row after that")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--no-tests", action="store_true", help="without pytest -m gpu")
    arguments = parser.parse_args()
    if arguments.accelerator == "gpu" and not torch.cuda.is_available():
        print("benchmarks/gpu.py: torch finds no NVIDIA GPU here.", file=sys.stderr)
        return 2
    quiet_libraries()
    set_up_allocator()
    os.environ["WANDB_MODE"] = "disabled"  # overrides the settings of runs and tests
    deadline = time.monotonic() + 60 * arguments.minutes
    device = torch.device("cuda" if arguments.accelerator == "gpu" else "cpu")
    scale = TOY if arguments.toy else Scale()
    found: dict[str, Any] = {
        "device": device_name(arguments.accelerator),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "gigabytes": limit_memory(scale.gigabytes, device),
    }
    print(json.dumps(found), flush=True)
    bench = Bench(device, scale, resolve_precision("auto", arguments.accelerator))
    for name in ("arithmetic", "runs", "steps"):
        rows = found[name] = []
        for row, work in getattr(bench, name)():
            rows.append(row | attempt(work, deadline, device))
            arguments.out.write_text(json.dumps(found, indent=2) + "\n")
        print(f"\n{table(rows)}", flush=True)
    if device.type == "cuda" and not arguments.no_tests:
        found["pytest -m gpu"] = correctness(max(120.0, deadline - time.monotonic()))
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")
        print(found["pytest -m gpu"], flush=True)
    return 0


def limit_memory(gigabytes: float, device: torch.device) -> float | None:
    """Limits torch's memory on a GPU, and returns the limit in GiB."""
    if device.type != "cuda":
        return None
    total = torch.cuda.get_device_properties(device).total_memory / 2**30
    torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes / total))
    return round(min(total, gigabytes), 1)


if __name__ == "__main__":
    raise SystemExit(main())
