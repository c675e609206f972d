"""Random states of torch, so that readouts do not change training and resuming is exact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

CPU = torch.device("cpu")


def random_state(device: torch.device) -> dict[str, Any]:
    """Returns torch's random states as plain tensors: the CPU's, and on a GPU those of every GPU.

    Args:
        device: of the run. A run on the CPU must not touch a GPU of the machine.
    """
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state_all()
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restores what `random_state` returned; GPU states only if the number of GPUs is the same."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type not in state:  # the run was on another device
        return
    if device.type == "mps":
        torch.mps.set_rng_state(state["mps"].cpu())
    elif device.type == "cuda" and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([gpu.cpu() for gpu in state["cuda"]])


@contextmanager
def rng_preserved(device: torch.device) -> Iterator[None]:
    """Restores the random states of a device after the block."""
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)
