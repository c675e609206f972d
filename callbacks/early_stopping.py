"""Stops a run that no longer improves."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import LightningModule, Trainer, callbacks


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's, but a resumed run uses the patience of its settings, not of the checkpoint.

    It decides when a validation ends, so that observers of the epoch know whether it is the last.
    The name is Lightning's too, as checkpoints save its state under the class name.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best value, and how long ago it was reached."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends a run that had stopped early before it was killed, which Lightning forgets."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


def early_stopping(monitor: str, mode: str, patience: int) -> EarlyStopping:
    """Watches the quantity that also chooses best.ckpt.

    Args:
        monitor: its name.
        mode: `min` or `max`, what is better.
        patience: validations without improvement.
    """
    return EarlyStopping(
        monitor=monitor,
        mode=mode,
        patience=patience,
        check_finite=False,
        check_on_train_epoch_end=False,
    )
