"""Measures how many dimensions the embeddings of held-out images use."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from callbacks.step_outputs import PretrainingOutputs, outputs_of
from models.measures.feature_statistics import effective_rank
from models.precision import at_least_float32


class EffectiveRank(Callback):
    """Logs `val/effective_rank`, RankMe of the first view's embeddings, mean over the batches."""

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measures a batch."""
        shown = outputs_of(outputs, PretrainingOutputs)
        if shown is not None and shown.embeddings is not None:
            (embeddings,) = at_least_float32(shown.embeddings[0])
            rank = effective_rank(embeddings)
            pl_module.log("val/effective_rank", rank, batch_size=len(embeddings))
