"""Stops a run whose validation loss no longer falls."""

from __future__ import annotations

from pytorch_lightning.callbacks import EarlyStopping


def early_stopping(patience: int) -> EarlyStopping:
    """Watches the quantity that also chooses best.ckpt.

    Args:
        patience: validations without improvement.
    """
    return EarlyStopping(monitor="val/loss", mode="min", patience=patience, check_finite=False)
