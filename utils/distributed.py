"""What several processes, one per GPU, have to say to each other; alone, all of it is nothing."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def num_processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Number of this process among them."""
    return dist.get_rank() if num_processes() > 1 else 0


def sum_over_processes(value: Tensor) -> Tensor:
    """Returns Σ over processes; no gradient."""
    if num_processes() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def of_all_processes(value: Any) -> list[Any]:
    """Returns the values of all processes in the order of their ranks."""
    values: list[Any] = [value] * num_processes()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def gather_rows(rows: Tensor) -> Tensor:
    """Returns the rows `(n, …)` of all processes in the order of their ranks; no gradient.

    Processes may have different numbers of rows.
    """
    if num_processes() == 1:
        return rows
    counts = [torch.zeros((), dtype=torch.long, device=rows.device) for _ in range(num_processes())]
    dist.all_gather(counts, torch.tensor(len(rows), device=rows.device))
    largest = max(int(count) for count in counts)
    padded = rows.new_zeros(largest, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


def gather_batch(features: Tensor) -> Tensor:
    """Returns the features `(n, D)` of all processes, `(N, D)`, for a loss over the whole batch.

    All have equally many rows. For losses that every process computes alike from all N rows, under
    DistributedDataParallel, which *averages* gradients: what follows the features has the same
    gradient everywhere, and the average leaves it; what precedes them has on each process only that
    of its own rows, which is therefore multiplied by the number of processes. (Official Barlow
    Twins lacks this factor: its gradients are off by 1/processes.)
    """
    if num_processes() == 1:
        return features
    own = features * 1.0  # a node of its own: the hook must not change other uses of `features`
    if own.requires_grad:
        own.register_hook(lambda gradient: gradient * num_processes())
    # Not `gather_rows`, whose counts the host would wait for in the middle of a step.
    sent = features.detach().contiguous()
    parts = [torch.empty_like(sent) for _ in range(num_processes())]
    dist.all_gather(parts, sent)
    parts[process_rank()] = own
    return torch.cat(parts)
