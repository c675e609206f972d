"""Counts and names image files that could not be read."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from callbacks.inspection import data_of

# More than this share of unreadable files is a broken data set, not a stray file.
LIMIT = 0.01


class UnreadableImages(Callback):
    """Collects the images that loaders skipped, and stops the run if they are more than 1 %."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def state_dict(self) -> dict[str, list[str]]:
        """The names, so that a resumed run does not lose them."""
        return {"names": sorted(self.names)}

    def load_state_dict(self, state_dict: dict[str, list[str]]) -> None:
        """Restores them."""
        self.names.update(state_dict["names"])

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Collects the batch's names."""
        self._collect(trainer, batch)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects the batch's names."""
        self._collect(trainer, batch)

    def _collect(self, trainer: Trainer, batch: Any) -> None:
        if not batch.unreadable:
            return
        self.names.update(batch.unreadable)
        data = data_of(trainer)
        total = len(data.train_files) + len(data.val_files)
        if len(self.names) > LIMIT * total:
            raise ValueError(
                f"{len(self.names)} of {total} images cannot be read, more than {LIMIT:.0%}: "
                f"{'; '.join(sorted(self.names)[:3])}. Repair or remove them."
            )
