"""Carries torch's random states through checkpoints, so that dropout continues where it stopped."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from utils.rng import random_state, set_random_state


class RandomState(Callback):
    """Restores, when training starts again, the states that stood in the checkpoint."""

    def __init__(self) -> None:
        self._restore: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states now."""
        return random_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the states until the first step."""
        self._restore = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores them: building the model has drawn from them since."""
        if self._restore is not None:
            set_random_state(self._restore)
            self._restore = None
