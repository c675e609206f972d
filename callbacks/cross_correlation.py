"""The cross-correlation matrix of two views as a heat map (Barlow Twins, fig. 1 of the study)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.epochs import due
from callbacks.inspection import SayOnce
from callbacks.step_outputs import PretrainingOutputs, outputs_of
from models.losses.barlow_twins import cross_correlation
from utils import figures
from utils.logging import log_figure
from utils.text import count


class CrossCorrelation(Callback):
    """Draws the matrix of `num_samples` images, in training and validation.

    The noise in a matrix depends on the number of samples, so every picture has the same number:
    the last ones of a training epoch, and the first ones of a validation.

    Args:
        every_n_epochs: when to draw.
        num_samples: N.
    """

    def __init__(self, every_n_epochs: int, num_samples: int) -> None:
        self.every_n_epochs = every_n_epochs
        self.num_samples = num_samples
        self.train: list[tuple[Tensor, Tensor]] = []
        self.val: list[tuple[Tensor, Tensor]] = []
        self.say = SayOnce()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keeps the last embeddings of every epoch: early stopping may make any epoch the last."""
        if pair := _embeddings(outputs):
            self.train.append(pair)
            while sum(len(z1) for z1, _ in self.train[1:]) >= self.num_samples:
                self.train.pop(0)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the first embeddings."""
        enough = sum(len(z1) for z1, _ in self.val) >= self.num_samples
        if (pair := _embeddings(outputs)) and not enough and not trainer.sanity_checking:
            self.val.append(pair)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the training matrix."""
        self._draw(trainer, self.train, "train")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the validation matrix."""
        self._draw(trainer, self.val, "val")

    def _draw(self, trainer: Trainer, kept: list[tuple[Tensor, Tensor]], split: str) -> None:
        pairs = list(kept)
        kept.clear()  # even if nothing is drawn
        if pairs and due(trainer, self.every_n_epochs):
            wanted = slice(-self.num_samples, None) if split == "train" else slice(self.num_samples)
            z1, z2 = (torch.cat(part)[wanted] for part in zip(*pairs, strict=True))
            if len(z1) < self.num_samples:
                self.say(
                    f"cross_correlation: {split} offers {count(len(z1), 'sample')}, fewer than "
                    f"num_samples {self.num_samples}; compare such pictures only with each other."
                )
            where = f"{split} images, step {trainer.global_step}"
            matrix = cross_correlation(z1, z2).cpu()
            figure = draw(matrix, len(z1), where)
            arrays = {"matrix": matrix.half().numpy(), "samples": np.array(len(z1))}
            log_figure(trainer, f"cross_correlation/{split}", figure, arrays)


def _embeddings(outputs: Any) -> tuple[Tensor, Tensor] | None:
    found = outputs_of(outputs, PretrainingOutputs)
    return found.embeddings if found else None


def draw(correlation: Tensor, samples: int, where: str, zoom: int = 48) -> Figure:
    """Draws C `(D, D)` with fixed colours (1 red, 0 cyan-blue), and a corner of a large one."""
    dim = len(correlation)
    off = correlation[~torch.eye(dim, dtype=torch.bool)]
    title = (
        f"Cross-correlation of the two views, {where}, N = {samples}, D = {dim}\n"
        f"mean diagonal {correlation.diagonal().mean():.3f} (goal 1)\n"
        f"off-diagonal RMS {off.square().mean().sqrt():.3f} (goal 0; independent features at this "
        f"N: {(samples - 1) ** -0.5:.3f})"
    )
    parts = [(correlation, f"all {dim} dimensions")]
    if dim > zoom:
        parts.append((correlation[:zoom, :zoom], f"first {zoom} dimensions"))
    # Wide enough for a pixel per cell up to D = 512.
    figure, axes = figures.grid(1, len(parts), cell=(6.4, 5.4), title=title)
    for axis, (part, label) in zip(axes[0], parts, strict=True):
        image = axis.imshow(
            part.numpy(), cmap=figures.CORRELATION, vmin=-1, vmax=1, interpolation="nearest"
        )
        axis.grid(False)
        axis.set(title=label, xlabel="dimension, view 2", ylabel="dimension, view 1")
    figure.colorbar(image, ax=axes, shrink=0.7, label="correlation")
    return figure
