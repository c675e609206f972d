"""Random states of torch, so that looking changes nothing and resuming continues."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def random_state() -> dict[str, Any]:
    """Returns torch's random states as plain tensors, CPU and every GPU."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restores what `random_state` returned; GPU states only where there are as many GPUs."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([gpu.cpu() for gpu in state["cuda"]])


@contextmanager
def rng_preserved() -> Iterator[None]:
    """Leaves every random state as it was."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
