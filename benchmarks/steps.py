"""Times a training step of Barlow Twins here, in a bare loop, and with lightly's parts, in turns.

    python benchmarks/steps.py --out steps.json

All use the same network, projector, batch and optimizer; here Lightning trains the agent, as in a
run. Images are random and in memory. lightly takes part if installed. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn

from agents.backbone import lay_out, new_backbone
from benchmarks.training_step import settings_of, step_cost, synchronise
from config.hparams import Hparams
from models.heads.projector import projector
from utils.console import quiet_libraries
from utils.device import best_device, device_name, resolve_precision

Loss = Callable[[Tensor, Tensor], Tensor]
_WARM = 2


@dataclass(frozen=True)
class Case:
    """A network and the batch it is trained on."""

    backbone: str
    side: int
    batch: int

    def settings(self, precision: str) -> Hparams:
        """Returns the settings of a run."""
        words = ["--backbone.name", self.backbone, "--data.image_size", str(self.side)]
        words += ["--data.batch_size", str(self.batch), "--trainer.precision", precision]
        return settings_of(*words, "--trainer.chunk_size", "null", "--optim.lr", "1e-5")


CPU_CASES = (Case("resnet18", 32, 256), Case("vit_small", 224, 8))
GPU_CASES = (Case("resnet50", 224, 128), Case("vit_small", 224, 128))


def plain_loss(z1: Tensor, z2: Tensor) -> Tensor:
    """Computes Barlow Twins' loss as in the paper's pseudocode."""
    one, two = ((z - z.mean(0)) / z.std(0, correction=0) for z in (z1, z2))
    correlation = one.T @ two / len(one)
    diagonal = correlation.diagonal()
    off = correlation.flatten()[:-1].view(len(correlation) - 1, len(correlation) + 1)[:, 1:]
    return (diagonal - 1).square().sum() + 0.0051 * off.square().sum()


def lightlys(width: int, hidden: int, dim: int) -> tuple[nn.Module, Loss] | None:
    """Returns lightly's projector and loss; None if it is not installed."""
    try:
        from lightly.loss import BarlowTwinsLoss
        from lightly.models.modules import BarlowTwinsProjectionHead
    except ImportError:
        return None
    return BarlowTwinsProjectionHead(width, hidden, dim), BarlowTwinsLoss()


def loop(
    hparams: Hparams, device: torch.device, steps: int, head: nn.Module, loss: Loss
) -> Callable[[], float]:
    """Returns a plain training loop for the same network, which returns seconds per step."""
    backbone = new_backbone(hparams)
    lay_out(backbone, device)
    backbone.to(device)
    head.to(device)
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-5, fused=device.type == "cuda")
    size, side = int(hparams.data.batch_size), int(hparams.data.image_size)
    views = torch.randint(0, 256, (2, size, 3, side, side), dtype=torch.uint8)
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(hparams.trainer.precision)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, half, enabled=half is not None):
            z1, z2 = (head(backbone(view.to(device)).pooled) for view in views)
        loss(z1.float(), z2.float()).backward()
        optimizer.step()

    def run() -> float:
        for _ in range(_WARM):
            step()
        synchronise(device)
        started = time.perf_counter()
        for _ in range(steps):
            step()
        synchronise(device)
        return (time.perf_counter() - started) / steps

    return run


def measure(case: Case, device: torch.device, rounds: int, steps: int) -> dict[str, float]:
    """Returns median seconds per step, by name of the loop."""
    hparams = case.settings(resolve_precision("auto", "auto"))
    width, method = new_backbone(hparams).embed_dim, hparams.barlow_twins
    dim, hidden = int(method.projector_dim), int(method.hidden_dim)
    head = projector(width, dim, method.projector_layers, hidden)
    runners: dict[str, Callable[[], float]] = {
        "here": lambda: case.batch / step_cost(hparams, device, steps).images_per_second,
        "bare loop": loop(hparams, device, steps, head, plain_loss),
    }
    if (parts := lightlys(width, hidden, dim)) is not None:
        runners["lightly"] = loop(hparams, device, steps, *parts)
    taken: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            taken[name].append(run())
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def main() -> None:
    """Prints a table, and saves the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    quiet_libraries()
    device = best_device("auto")
    found: dict[str, Any] = {"device": device_name("auto"), "torch": torch.__version__}
    print("| network | px | N | " + "loop | s / step | ratio to bare loop |\n" + "|---" * 6 + "|")
    for case in GPU_CASES if device.type == "cuda" else CPU_CASES:
        seconds = measure(case, device, arguments.rounds, arguments.steps)
        found[case.backbone] = seconds
        for name, value in seconds.items():
            ratio = value / seconds["bare loop"]
            print(
                f"| {case.backbone} | {case.side} | {case.batch} | {name} | {value:.3f} | "
                f"{ratio:.2f} |",
                flush=True,
            )
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
