"""Ctrl-C, SIGTERM and what else asks a run to stop: finish the step, save, stop."""

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

    A second Ctrl-C stops at once, without saving. So does the first request before and after
    training, see `stopping_at_once`: all is saved then, and a run that goes on tests anew.

    Args:
        checkpoint: where to save.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.asked: str | None = None
        self.saved_at: int | None = None
        self._previous: Previous = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listens."""
        self._previous = listen(self._ask, STOPPING)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops, when asked after the last step: everything is saved."""
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
    """Ends what is done inside when the process is asked to stop, as Ctrl-C does.

    Of SIGTERM Lightning would take a note only, which it reads after a test that may be long.

    Raises:
        SystemExit: it was asked to.
    """
    with listening(_leave, TERMINATING):
        yield


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(signal.Signals(number).name)
