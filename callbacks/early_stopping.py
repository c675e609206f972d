"""Stops a run that no longer improves."""

from __future__ import annotations

from pytorch_lightning.callbacks import EarlyStopping


def early_stopping(monitor: str, mode: str, patience: int) -> EarlyStopping:
    """Watches the quantity that also chooses best.ckpt.

    Args:
        monitor: its name.
        mode: `min` or `max`, what is better.
        patience: validations without improvement.
    """
    return EarlyStopping(monitor=monitor, mode=mode, patience=patience, check_finite=False)
