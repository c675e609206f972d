"""Numbers the steps and epochs of a resumed run as in an uninterrupted one."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class StepNumbers(Callback):
    """Logs step n as n - 1, and begins a new epoch after one that had ended.

    Lightning counts the steps of loggers apart from `global_step`, and counts one too many if it
    resumes from the end of training. If the length of a run is in steps, it also resumes from the
    end of an epoch as if from its middle: the epoch would end twice.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts an epoch that had ended as done, as Lightning does if the length is in epochs."""
        loop: Any = trainer.fit_loop
        epochs = loop.epoch_progress
        # A length in steps may end in the middle of an epoch, and be extended later.
        whole = loop.epoch_loop.batch_progress.current.ready >= trainer.num_training_batches
        if whole and loop.restarted_on_epoch_end:
            if epochs.current.completed < epochs.current.processed:
                epochs.increment_completed()
            loop.epoch_loop.restarting = False
            loop.reset_restart_stage()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Sets the count of loggers to `global_step`."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts the last epoch also if nothing was left to train.

        Checkpoints are saved before Lightning does. It makes up for that only if the run has ended
        by its number of epochs.
        """
        epochs: Any = trainer.fit_loop.epoch_progress.current
        epochs.completed = epochs.processed
