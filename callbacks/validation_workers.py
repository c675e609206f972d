"""The processes that load validation images start before the first step."""

from __future__ import annotations

from pytorch_lightning import Callback, LightningModule, Trainer

from datamodules.loading import loaders_in


class ValidationWorkers(Callback):
    """Starts them while the run is small.

    A process that is forked begins with the memory of the one that forks it, and holds on to what
    that writes anew from then on. Forked at the first validation it would hold all that steps had
    left in memory, on a CPU gigabytes of activations, for the rest of the run.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts them."""
        if not trainer.enable_validation:
            return
        trainer.validating = True  # as Lightning has it where the first epoch ends with one
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        trainer.training = True
        for loader in loaders_in(trainer.val_dataloaders):
            loader.start()
