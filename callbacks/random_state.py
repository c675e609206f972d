"""Gives every process its own randomness, and carries it through checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from utils.distributed import of_all_processes, process_rank
from utils.rng import CPU, random_state, set_random_state


class RandomState(Callback):
    """Restores, when training starts again, the states that stood in the checkpoint.

    Dropout then continues where it stopped. Processes build the same network from one seed, and
    drop different units afterwards.

    Args:
        seed: of the run.
        device: that trains.
    """

    def __init__(self, seed: int, device: torch.device = CPU) -> None:
        self.seed = seed
        self.device = device
        self._restore: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states of all processes now."""
        states = of_all_processes(random_state(self.device))
        return {str(rank): state for rank, state in enumerate(states)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state of this process until the first step."""
        self._restore = state_dict.get(str(process_rank()))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores it: building the model has drawn from it since."""
        if self._restore is not None:
            set_random_state(self._restore, self.device)
            self._restore = None
        elif trainer.global_rank > 0:
            torch.manual_seed(self.seed + 10_007 * trainer.global_rank)
