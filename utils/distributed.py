"""Communication between processes, one per GPU; a single process does nothing here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def num_processes() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Rank of this process among them."""
    return dist.get_rank() if num_processes() > 1 else 0


class OtherProcessError(RuntimeError):
    """A joint computation failed on another process."""

    def __init__(self) -> None:
        super().__init__("it failed on another process")


_failing_together = ContextVar("failing_together", default=False)


@contextmanager
def failing_together() -> Iterator[None]:
    """Makes an error inside on one process an error on all; otherwise the others would hang.

    The processes check on each other before every communication of this module inside, and at the
    end. Communication by torch itself, as for `SyncBatchNorm`, is not covered.

    Raises:
        OtherProcessError: there was an error on another process.
    """
    token = _failing_together.set(True)
    try:
        yield
        _meet()
    except OtherProcessError:
        raise
    except Exception:
        _meet(failed=True)
        raise
    finally:
        _failing_together.reset(token)


def _meet(failed: bool = False) -> None:
    if num_processes() == 1 or not _failing_together.get():
        return
    states: list[bool] = [failed] * num_processes()
    dist.all_gather_object(states, failed)
    if any(states) and not failed:
        raise OtherProcessError


def sum_over_processes(value: Tensor) -> Tensor:
    """Returns Σ over processes; no gradient."""
    if num_processes() == 1:
        return value
    total = value.detach().clone()
    _meet()
    dist.all_reduce(total)
    return total


def of_all_processes(value: Any) -> list[Any]:
    """Returns the values of all processes in the order of their ranks."""
    values: list[Any] = [value] * num_processes()
    if len(values) > 1:
        _meet()
        dist.all_gather_object(values, value)
    return values


def gather_rows(rows: Tensor) -> Tensor:
    """Returns the rows `(n, …)` of all processes in the order of their ranks; no gradient.

    Processes may have different numbers of rows.
    """
    if num_processes() == 1:
        return rows
    counts = [torch.zeros((), dtype=torch.long, device=rows.device) for _ in range(num_processes())]
    own = torch.tensor(len(rows), device=rows.device)
    _meet()
    dist.all_gather(counts, own)
    largest = max(int(count) for count in counts)
    padded = rows.new_zeros(largest, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    _meet()
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


def gather_batch(features: Tensor) -> Tensor:
    """Returns the features `(n, D)` of all processes, `(N, D)`, for a loss over the whole batch.

    All have the same number of rows. This is for losses that every process computes from all N
    rows, under DistributedDataParallel, which *averages* gradients. Layers after the features have
    the same gradient on all processes, which the average does not change. Layers before them have
    on each process only the gradient of its own rows, which is therefore multiplied by the number
    of processes. (Official Barlow Twins lacks this factor: its gradients are off by 1/processes.)
    """
    if num_processes() == 1:
        return features
    own = features * 1.0  # a new node, so that the hook does not change other uses of `features`
    if own.requires_grad:
        own.register_hook(lambda gradient: gradient * num_processes())
    # Not `gather_rows`, where the host would wait for the GPU in the middle of a step.
    sent = features.detach().contiguous()
    parts = [torch.empty_like(sent) for _ in range(num_processes())]
    _meet()
    dist.all_gather(parts, sent)
    parts[process_rank()] = own
    return torch.cat(parts)
