"""Stops a run on Ctrl-C, SIGTERM and similar signals: finishes the step, saves, stops."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from utils.signals import STOPPING, TERMINATING, Previous, listen, listening, restore


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""


class Interruption(Callback):
    """Saves a checkpoint between two steps when the process is asked to stop.

    A second Ctrl-C stops at once, without saving. So does the first one outside of training, see
    `stopping_at_once`: everything is saved then, and a resumed run repeats the test.

    Args:
        checkpoint: where to save.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.asked: str | None = None
        self.saved_at: int | None = None
        self._previous: Previous = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts listening for signals."""
        self._previous = listen(self._ask, STOPPING)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops if asked after the last step; everything is saved."""
        if self._anyone_asked(trainer):
            raise Interrupted(f"{self.asked} before the test")

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Saves when asked to stop; the stop follows later, as metrics are logged after this hook.

        The last step of an epoch or run is not saved here but by the end of the epoch: a run that
        resumed from here would skip validation and readouts.
        """
        # Checkpoints do not hold gradients that are still being accumulated.
        complete = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        last = trainer.is_last_batch or trainer.global_step == trainer.max_steps
        if complete and not last and self._anyone_asked(trainer):
            trainer.save_checkpoint(self.checkpoint)
            self.saved_at = trainer.global_step

    def _anyone_asked(self, trainer: Trainer) -> bool:
        if trainer.world_size > 1:
            # All processes must stop at the same step, whichever of them was asked.
            decided = trainer.strategy.reduce_boolean_decision(self.asked is not None, all=False)
            self.asked = (self.asked or "another process") if decided else None
        return self.asked is not None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stops before the next step, if saved."""
        self._stop()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the step to stop at, as every epoch is saved when it ends."""
        if self._anyone_asked(trainer):
            self.saved_at = trainer.global_step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops before the next epoch, if saved."""
        self._stop()

    def _stop(self) -> None:
        if self.saved_at is not None:
            raise Interrupted(f"{self.asked} at step {self.saved_at}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stops listening."""
        restore(self._previous)
        self._previous = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = name
        print(
            f"\n{name}: finishing this step, then saving. Ctrl-C again stops at once.", flush=True
        )


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Ends the code inside at once on SIGTERM and the like, as Ctrl-C does.

    Lightning would only note SIGTERM, and act on it after a test that may be long.

    Raises:
        SystemExit: the process was asked to stop.
    """
    with listening(_leave, TERMINATING):
        yield


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(signal.Signals(number).name)
