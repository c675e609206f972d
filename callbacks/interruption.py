"""Ctrl-C and SIGTERM: finish the step, save, stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""


class Interruption(Callback):
    """Saves a checkpoint between two steps when the process is asked to stop.

    A second Ctrl-C stops at once, without saving. So does the first request in a test, before which
    everything has been saved: a run that goes on tests anew.

    Args:
        checkpoint: where to save.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.asked: str | None = None
        self.saved_at: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listens."""
        self._previous = _listen(self._ask, *_SIGNALS)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops, when asked after the last step: everything is saved. Else listens.

        To what Lightning would hear only after the test, which may be long.
        """
        if self._anyone_asked(trainer):
            raise Interrupted(f"{self.asked} before the test")
        self._previous = _listen(_leave, signal.SIGTERM)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Saves when asked to stop. The step's metrics are logged after this hook, so go on.

        After the last step of an epoch, or of the run, to its end, which saves as well: a run that
        went on from here would not validate, and not look at what it has learnt.
        """
        # Gradients that are still being accumulated are in no checkpoint.
        complete = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        last = trainer.is_last_batch or trainer.global_step == trainer.max_steps
        if complete and not last and self._anyone_asked(trainer):
            trainer.save_checkpoint(self.checkpoint)
            self.saved_at = trainer.global_step

    def _anyone_asked(self, trainer: Trainer) -> bool:
        if trainer.world_size > 1:
            # All processes have to stop at the same step, whichever was told to.
            decided = trainer.strategy.reduce_boolean_decision(self.asked is not None, all=False)
            self.asked = (self.asked or "another process") if decided else None
        return self.asked is not None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stops, when saved, before the next step."""
        self._stop()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Every epoch is saved when it ends."""
        if self._anyone_asked(trainer):
            self.saved_at = trainer.global_step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops, when saved, before the next epoch."""
        self._stop()

    def _stop(self) -> None:
        if self.saved_at is not None:
            raise Interrupted(f"{self.asked} at step {self.saved_at}")

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


def _listen(
    handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals
) -> dict[signal.Signals, Any]:
    """Returns who listened before, by signal; nothing in a thread, which hears of none."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in numbers}


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(f"{signal.Signals(number).name} in the test")
