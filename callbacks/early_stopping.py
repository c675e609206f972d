"""Stops a run that no longer improves."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import LightningModule, Trainer, callbacks

from utils.console import console
from utils.text import count


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
        trainer.should_stop = trainer.should_stop or self._is_over

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says that it ended the run, also if there was nothing left to train in a resumed one."""
        is_cut = self._is_over and trainer.global_step < trainer.estimated_stepping_batches
        if is_cut and trainer.is_global_zero:
            console.info(
                "early_stopping: no better %s in %s, so training ended at step %d. It goes on with "
                "a larger --callbacks.early_stopping.patience.",
                *(self.monitor, count(self.wait_count, "validation"), trainer.global_step),
            )

    @property
    def _is_over(self) -> bool:
        return self.wait_count >= self.patience


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
