"""Gives every process its own randomness, and carries it through checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from utils.distributed import of_all_processes, process_rank
from utils.rng import CPU, random_state, set_random_state


class RandomState(Callback):
    """Restores the random states of a checkpoint when training starts again.

    Dropout then continues where it stopped. All processes build the same network from one seed, but
    drop different units afterwards.

    Args:
        seed: of the run.
        device: trains the run.
    """

    def __init__(self, seed: int, device: torch.device = CPU) -> None:
        self.seed = seed
        self.device = device
        self._restore: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The current states of all processes."""
        states = of_all_processes(random_state(self.device))
        return {str(rank): state for rank, state in enumerate(states)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state of this process until the first step."""
        self._restore = state_dict.get(str(process_rank()))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores it only now, as building the model has drawn from it."""
        if self._restore is not None:
            set_random_state(self._restore, self.device)
            self._restore = None
        elif trainer.global_rank > 0:
            torch.manual_seed(self.seed + 10_007 * trainer.global_rank)
