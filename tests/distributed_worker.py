"""One of two processes; started by test_distributed.py as torchrun would start it."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from main import main
from models.losses.dino import Center
from utils.distributed import gather_batch, gather_rows, num_processes, process_rank


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


if __name__ == "__main__":
    commands, report = json.loads(sys.argv[1]), Path(sys.argv[2])
    codes = [main(command) for command in commands]
    direct_checks()
    if process_rank() == 0:
        report.write_text(json.dumps(codes))
    dist.barrier()
    dist.destroy_process_group()
