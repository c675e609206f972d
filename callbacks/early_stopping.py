"""Stops a run that no longer improves."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import LightningModule, Trainer, callbacks


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's, of which a resumed run obeys its own patience, not the checkpoint's.

    It decides when a validation ends: what looks at that epoch then knows whether it is the last.
    The name is Lightning's too: checkpoints keep its state under it.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what was best, and for how long."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends a run that had been ended before it was killed, as Lightning would not know."""
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
