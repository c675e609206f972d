"""Starts the processes that load validation images before the first step."""

from __future__ import annotations

from pytorch_lightning import Callback, LightningModule, Trainer

from datamodules.loading import loaders_in


class ValidationWorkers(Callback):
    """Starts them while the run takes little memory.

    A forked process shares the memory of its parent, and keeps the old content of all that the
    parent changes later. Forked at the first validation, it would keep what training steps had left
    in memory, gigabytes of activations on a CPU, for the rest of the run.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts them."""
        if not trainer.enable_validation:
            return
        trainer.validating = True  # as in Lightning if the first epoch ends with one
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        trainer.training = True
        for loader in loaders_in(trainer.val_dataloaders):
            loader.start()
