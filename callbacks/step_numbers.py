"""Numbers the steps of a resumed run as those of a run in one go."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class StepNumbers(Callback):
    """Logs step n as n - 1, whatever the checkpoint it goes on from was saved after.

    Lightning counts the steps for loggers apart from `global_step`, and when it goes on from where
    training had ended it counts one too many.
    """

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Lets both counts agree."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
