"""Numbers the steps and epochs of a resumed run as those of a run in one go."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class StepNumbers(Callback):
    """Logs step n as n - 1, and begins the next epoch after one that had ended.

    Lightning counts the steps for loggers apart from `global_step`, and when it goes on from where
    training had ended it counts one too many. And where the length of a run is in steps it goes on
    from the end of an epoch as if from its middle: the epoch would end twice.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts an epoch as done that had ended, as Lightning does of lengths in epochs."""
        loop: Any = trainer.fit_loop
        epochs = loop.epoch_progress
        # A run of so many steps may have ended in the middle of an epoch, and be given more.
        whole = loop.epoch_loop.batch_progress.current.ready >= trainer.num_training_batches
        if whole and loop.restarted_on_epoch_end:
            if epochs.current.completed < epochs.current.processed:
                epochs.increment_completed()
            loop.epoch_loop.restarting = False
            loop.reset_restart_stage()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Lets both counts agree."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
