"""Saves the test result of every image, so that runs can be compared image by image."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from callbacks.inspection import class_names
from callbacks.step_outputs import EvaluationOutputs, outputs_of
from utils.files import replacing
from utils.logging import own_log
from utils.palette import VOID


class ImageCounts(Callback):
    """Writes `test_counts.npz`: a confusion matrix of pixels for every test image.

    A confidence interval of the difference between two runs needs them one by one, as some images
    are hard for both (`benchmarks/paired_bootstrap.py`).
    """

    def __init__(self) -> None:
        self.rows: list[torch.Tensor] = []  # (n, 4): image, truth, prediction, pixels

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets an earlier test."""
        self.rows = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts the pixels of a batch."""
        classes, shown = len(class_names(pl_module)), outputs_of(outputs, EvaluationOutputs)
        if shown is None:
            return
        for (_, labels), prediction, index in zip(
            batch.items(), shown.predictions, batch.indices.tolist(), strict=True
        ):
            valid = labels != VOID
            pairs = labels[valid].long() * classes + prediction[valid]
            counted = torch.bincount(pairs.cpu(), minlength=classes**2)
            (there,) = counted.nonzero(as_tuple=True)
            image = torch.full_like(there, index)
            self.rows.append(
                torch.stack([image, there // classes, there % classes, counted[there]], 1)
            )

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file, unless there are several processes, of which none sees all images."""
        log = own_log(trainer.loggers)
        if log and trainer.world_size == 1:
            with replacing(log.folder.path / "test_counts.npz") as stream:
                np.savez_compressed(
                    stream,
                    rows=torch.cat(self.rows).numpy().astype(np.uint32),
                    num_classes=len(class_names(pl_module)),
                )
