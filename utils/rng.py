"""Random states of torch, so that looking changes nothing and resuming continues."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

CPU = torch.device("cpu")


def random_state(device: torch.device) -> dict[str, Any]:
    """Returns torch's random states as plain tensors: the CPU's, and on a GPU those of every GPU.

    Of Apple's there is one.

    Args:
        device: that computes. A GPU that is there is none that a run on the CPU should use.
    """
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state_all()
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restores what `random_state` returned; GPU states only where there are as many GPUs."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type not in state:  # of a run on another device
        return
    if device.type == "mps":
        torch.mps.set_rng_state(state["mps"].cpu())
    elif device.type == "cuda" and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([gpu.cpu() for gpu in state["cuda"]])


@contextmanager
def rng_preserved(device: torch.device) -> Iterator[None]:
    """Leaves the random states of what computes on a device as they were."""
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)
