"""Ctrl-C and SIGTERM: finish the step, save, stop."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""


class Interruption(Callback):
    """Saves a checkpoint between two steps when the process is asked to stop.

    A second Ctrl-C stops at once, without saving.

    Args:
        checkpoint: where to save.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.asked: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listens."""
        self._previous = {number: signal.signal(number, self._ask) for number in _SIGNALS}

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Saves and stops when asked to.

        Raises:
            Interrupted: after saving.
        """
        if self.asked:
            trainer.save_checkpoint(self.checkpoint)
            raise Interrupted(f"{self.asked} at step {trainer.global_step}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stops listening."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = name
        print(
            f"\n{name}: finishing this step, then saving. Ctrl-C again stops at once.", flush=True
        )
