"""Tests how well batches predict the gradient agreement of larger ones, and what it costs.

python benchmarks/gradient_agreement.py --steps 60            as in RESULTS.md, section 16
python benchmarks/gradient_agreement.py --task dino_twins --steps 0

Trains the default demonstration for some steps of N images. At the weights reached, pairs of
batches of N predict the cosine between two batches of M, and pairs of batches of M measure it. No
pair shares an image. Training steps and measurements are timed in turn. During training a batch is
compared with that of the last step, so the last line shows whether having trained on it matters.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from copy import deepcopy
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytorch_lightning as pl
import torch

from agents.base import Agent
from agents.build import build_agent, build_data
from agents.sources import build_source
from config.length import resolve_for_data
from config.parsing import Command, parse
from config.resolve import resolve
from datamodules.image_files import ImageFiles
from datamodules.loading import Batch, collate, join
from datamodules.self_supervised import ViewsDataModule
from models.measures.gradient_noise import GradientNoise, GradientPair, compare, estimate


class Batches:
    """Draws batches of random images in random views, without images in common."""

    def __init__(self, data: ViewsDataModule, seed: int) -> None:
        self.images = ImageFiles(data.train_files, data.views, seed)
        self.draws = 0

    def __call__(self, *sizes: int) -> list[Batch]:
        """Returns batches of these sizes that share no image."""
        self.draws += 1
        order = iter(torch.randperm(len(self.images)).tolist())
        return [
            join([collate([self.images[self.draws, next(order)] for _ in range(size)])])
            for size in sizes
        ]


def gradient(agent: Agent, batch: Batch) -> torch.Tensor:
    """Returns the gradient `(P,)` of the trained backbone."""
    parameters = [p for p in agent.trained_backbone.parameters() if p.requires_grad]
    loss = agent.batch_loss(batch)  # type: ignore[operator]
    found = torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True)
    return torch.cat([each.flatten() for each in found])


def compared(agent: Agent, first: Batch, second: Batch) -> GradientPair:
    """Compares the gradients of two batches of one size."""
    return compare(gradient(agent, first), gradient(agent, second), len(first))


def step(agent: Agent, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """Makes one optimizer step."""
    optimizer.zero_grad()
    agent.batch_loss(batch).backward()  # type: ignore[operator]
    optimizer.step()


def train(agent: Agent, batches: Batches, size: int, steps: int) -> torch.optim.Optimizer:
    """Trains for some steps with AdamW, without a schedule, and returns the optimizer."""
    optimizer = torch.optim.AdamW(agent.parameters(), agent.lr)
    spent: dict[str, list[float]] = {"step": [], "measurement": []}
    for number in range(steps):
        before, batch = batches(size, size)
        started = time.perf_counter()
        step(agent, optimizer, batch)
        spent["step"].append(time.perf_counter() - started)
        if number % 5 == 0:
            started = time.perf_counter()
            compared(agent, before, batch)
            spent["measurement"].append(time.perf_counter() - started)
    if steps:
        of_step, of_measurement = (statistics.median(times) for times in spent.values())
        print(
            f"A step of {size} images takes {of_step:.3f} s, a measurement {of_measurement:.3f} s: "
            f"{of_measurement / of_step:.2f} steps, {of_measurement / of_step / 100:.1%} of the "
            "training when every 100th step is measured.\n"
        )
    return optimizer


def of_training(
    agent: Agent, optimizer: torch.optim.Optimizer, batches: Batches, size: int, pairs: int
) -> None:
    """Prints the cosine of a batch with the one just trained on, and with another one.

    Each pair is measured after one step from the same weights, which are then restored.
    """
    weights, moments = deepcopy(agent.state_dict()), deepcopy(optimizer.state_dict())
    cosines: dict[str, list[float]] = {"after its step": [], "without": []}
    for _ in range(pairs):
        before, other, batch = batches(size, size, size)
        step(agent, optimizer, before)
        for found, first in zip(cosines.values(), (before, other), strict=True):
            found.append(compared(agent, first, batch).cosine)
        agent.load_state_dict(weights)
        optimizer.load_state_dict(deepcopy(moments))
    differences = [one - other for one, other in zip(*cosines.values(), strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    words = (f"{name} {statistics.fmean(found):.3f}" for name, found in cosines.items())
    print(
        f"\nCosine of a batch and the one before it, {', '.join(words)}: difference "
        f"{statistics.fmean(differences):+.3f} ± {error:.3f} ({pairs} pairs)."
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="barlow_twins")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=24, help="pairs of batches of every size")
    parser.add_argument("--root", default="data/shapes")
    given = parser.parse_args()
    words = ["--task", given.task, "--data.root", given.root]
    words += ["--data.batch_size", str(given.size), "--trainer.accelerator", "cpu"]
    command = parse(words)
    assert isinstance(command, Command)
    hparams = resolve(command.hparams)
    pl.seed_everything(0, verbose=False)
    source = build_source(hparams)
    data = build_data(hparams, source)
    assert isinstance(data, ViewsDataModule)
    data.prepare_data()
    data.setup("fit")
    hparams = resolve_for_data(hparams, len(data.train_files), on_gpu=False)
    agent = build_agent(hparams, source).train()
    agent.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    batches = Batches(data, 0)
    optimizer = train(agent, batches, given.size, given.steps)
    found = None
    print("| M | predicted from pairs of N | measured (ratio of means) | mean cosine ± deviation |")
    print("|---|---|---|---|")
    for size in [given.size * factor for factor in (1, 2, 4, 8)]:
        if 2 * size > len(data.train_files):
            continue
        pairs = [compared(agent, *batches(size, size)) for _ in range(given.pairs)]
        found = found or estimate(pairs)
        _row(str(size), size, found, pairs)
    assert found
    print(f"\n{given.task} after {given.steps} steps; noise scale {found.scale:.0f} images.")
    of_training(agent, optimizer, batches, given.size, given.pairs)


def _row(name: str, size: int, predicted: GradientNoise, measured: list[GradientPair]) -> None:
    low, high = predicted.cosine_range(size)
    itself, cosines = estimate(measured), [each.cosine for each in measured]
    print(
        f"| {name} | {predicted.cosine(size):.2f} ({low:.2f} to {high:.2f}) | "
        f"{itself.cosine(size):.2f} ({' to '.join(f'{c:.2f}' for c in itself.cosine_range(size))}) "
        f"| {statistics.fmean(cosines):.2f} ± {statistics.stdev(cosines):.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
