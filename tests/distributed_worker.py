"""One of two processes; started by test_distributed.py as torchrun would start it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pytorch_lightning.plugins.precision import Precision
from torch import nn

from callbacks.gradient_agreement import GradientAgreement
from datamodules.loading import Batch
from main import main
from models.losses.dino import Center
from utils.distributed import (
    OtherProcessError,
    failing_together,
    gather_batch,
    gather_rows,
    num_processes,
    of_all_processes,
    process_rank,
    sum_over_processes,
)


def direct_checks() -> None:
    rank = process_rank()
    assert num_processes() == 2
    rows = torch.arange(3 + rank).double()[:, None] + 10 * rank  # three rows and four
    assert gather_rows(rows).flatten().tolist() == [0, 1, 2, 10, 11, 12, 13]

    center = Center(2, momentum=0.5)
    center.collect(torch.full((2 + 4 * rank, 2), float(rank)))  # two zeros, six ones
    center.update()
    assert torch.allclose(center.value, torch.full((1, 2), 0.5 * 6 / 8))

    features = torch.ones(2, 3, requires_grad=True)
    gather_batch(features).square().sum().backward()
    assert torch.equal(features.grad, torch.full((2, 3), 4.0))  # 2 f, times two processes
    # A part of each row, which does not lie in memory in one piece.
    wide = torch.arange(8.0).view(2, 4) + 10 * rank
    assert gather_batch(wide[:, :-1]).tolist() == [[0, 1, 2], [4, 5, 6], [10, 11, 12], [14, 15, 16]]


def talk(failing: bool, place: int) -> None:
    """Fails before one of several calls, or after all."""
    calls: list[Callable[[torch.Tensor], object]]
    calls = [sum_over_processes, gather_rows, gather_batch, of_all_processes, torch.clone]
    with failing_together():
        for number, call in enumerate(calls):
            if failing and number == place:
                raise MemoryError
            call(torch.ones(2, 1))


class FailsOnOne(nn.Module):
    """An agent that is pretrained, and whose loss the second process has no memory for."""

    from_weights = False

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, 2)

    @property
    def trained_backbone(self) -> nn.Linear:
        return self.backbone

    def batch_loss(self, batch: Batch) -> torch.Tensor:
        if process_rank() == 1:
            raise MemoryError
        return gather_batch(self.trained_backbone(batch.views[0][0])).sum()


def checks_of_failures() -> None:
    rank = process_rank()
    for case in ((failing, place) for failing in (0, 1) for place in range(5)):
        with pytest.raises(MemoryError if rank == case[0] else OtherProcessError):
            talk(rank == case[0], case[1])
        assert of_all_processes(case) == [case] * 2  # none is ahead of the other
    with failing_together():
        assert sum_over_processes(torch.ones(1)).tolist() == [2.0]

    trainer: Any = SimpleNamespace(precision_plugin=Precision(), accumulate_grad_batches=1)
    agent: Any = FailsOnOne()
    batch = Batch(([torch.ones(4, 2)],), torch.arange(4), ())
    with pytest.raises(MemoryError if rank == 1 else OtherProcessError):
        GradientAgreement(1).measure(trainer, agent, batch, batch)
    assert of_all_processes(rank) == [0, 1]


if __name__ == "__main__":
    commands, report = json.loads(sys.argv[1]), Path(sys.argv[2])
    codes = [main(command) for command in commands]
    direct_checks()
    checks_of_failures()
    if process_rank() == 0:
        report.write_text(json.dumps(codes))
    dist.barrier()
    dist.destroy_process_group()
