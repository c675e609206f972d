"""Measures how much faster it is to read a frozen backbone's features than to compute them.

    python benchmarks/feature_cache.py --data.root ROOT --backbone.weights FILE [any setting]

The default is experiment voc-attention with one layer. Epochs are training steps with the
optimizer, without validation and checkpoints. Compare times within one call only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch.optim import AdamW

from agents.build import build_agent, build_data
from agents.segmentation import Segmentation
from agents.sources import build_source
from config.parsing import Command, parse
from config.resolve import resolve

_ROUNDS = 3


def seconds(work: Callable[[], Any]) -> float:
    """Returns the shortest of several times, as others may share the machine."""
    times = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def parts(settings: list[str], *more: str) -> tuple[Segmentation, Any]:
    """Builds agent and data of a run."""
    command = parse(
        ["--experiment", "voc-attention", "--backbone.layers", "last", *settings, *more]
    )
    if not isinstance(command, Command):
        raise SystemExit(command)
    hparams = resolve(command.hparams)
    torch.manual_seed(0)
    source = build_source(hparams)
    data, agent = build_data(hparams, source), build_agent(hparams, source)
    data.setup("fit")
    if not isinstance(agent, Segmentation):
        raise SystemExit("This measures segmentations.")
    agent.prepare(data, agent.device, None)
    agent.log = agent.log_dict = lambda *_, **__: None  # type: ignore[assignment, method-assign]
    agent.trainer = _Trainer()  # type: ignore[assignment]
    return agent, data


class _Trainer:
    """The attributes of Lightning's trainer that a training step uses."""

    optimizers = (type("Optimizer", (), {"param_groups": ({"lr": 0.0},)})(),)
    num_training_batches, global_step = 1, 0


def epoch(agent: Segmentation, data: Any) -> Callable[[], None]:
    """Returns a function that runs one epoch of training steps."""
    network = agent.network
    optimizer = AdamW([*network.head.parameters(), *network.fusion.parameters()], 1e-3)

    def run() -> None:
        for number, batch in enumerate(data.train_dataloader()):
            optimizer.zero_grad()
            agent.training_step(batch, number)["loss"].backward()
            optimizer.step()

    agent.train()
    return run


def features(agent: Segmentation, data: Any) -> Callable[[], None]:
    """Returns a function that computes or reads the features of an epoch's images."""

    @torch.no_grad()
    def run() -> None:
        for batch in data.train_dataloader():
            agent.network.encode(batch.images, batch.stored)

    return run


def main() -> None:
    """Prints the table."""
    settings = sys.argv[1:]
    with TemporaryDirectory() as folder:
        cache = ("--data.feature_cache", folder)
        computing = parts(
            settings, "--data.feature_cache", "off", "--segmentation.loss_stride", "1"
        )
        reading = parts(settings, *cache, "--segmentation.loss_stride", "1")
        quarter = parts(settings, *cache, "--segmentation.loss_stride", "4")
        images = len(computing[1].train_set)
        rows = {
            "features computed": seconds(features(*computing)),
            "features read": seconds(features(*reading)),
            "epoch, computing": seconds(epoch(*computing)),
            "epoch, reading": seconds(epoch(*reading)),
            "epoch, reading, loss_stride 4": seconds(epoch(*quarter)),
        }
    for name, taken in rows.items():
        first = rows["features computed" if name.startswith("features") else "epoch, computing"]
        print(f"{name:32s} {1000 * taken / images:8.2f} ms/image  {first / taken:6.1f} x")


if __name__ == "__main__":
    main()
