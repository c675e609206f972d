"""IoU of every class as bars."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.looking import class_names, confusion_of, due
from utils import figures
from utils.logging import log_figure
from utils.palette import coloured


class ClassIoU(Callback):
    """Draws it of the held-out images, and at the end of the test images.

    Args:
        every_n_epochs: when to draw.
    """

    def __init__(self, every_n_epochs: int = 5) -> None:
        self.every_n_epochs = every_n_epochs

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the held-out images'."""
        if due(trainer, self.every_n_epochs):
            self._draw(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the test images'."""
        self._draw(trainer, pl_module, "test")

    def _draw(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        confusion = confusion_of(pl_module, split)
        if confusion is not None:
            where = f"{split} images, step {trainer.global_step}"
            figure = draw(confusion, class_names(pl_module), where)
            log_figure(trainer, f"class_iou/{split}", figure)


def draw(confusion: Tensor, names: tuple[str, ...], where: str) -> Figure:
    """Draws bars from counts `(C, C)`, rows the truth."""
    hits = confusion.diagonal().double()
    union = confusion.sum(0) + confusion.sum(1) - hits
    iou = (hits / union.clamp(min=1)).numpy()
    there = (union > 0).numpy()
    mean = iou[there].mean() if there.any() else 0.0
    title = f"IoU by class, {where}: mean {mean:.3f} over {there.sum()} classes"
    figure, axes = figures.grid(1, 1, cell=(6.4, 0.22 * len(names) + 0.8), title=title)
    axis, rows = axes[0, 0], np.arange(len(names))
    colours = coloured(rows.astype(np.uint8)) / 255
    axis.barh(rows, np.where(there, iou, 0), color=colours, edgecolor="grey", linewidth=0.5)
    for row in rows:
        text = f"{iou[row]:.2f}" if there[row] else "neither occurs nor is predicted: left out"
        axis.text(iou[row] * there[row] + 0.01, row, text, va="center", fontsize=7)
    axis.axvline(mean, linestyle="--", color="black", linewidth=1, label=f"mean {mean:.3f}")
    axis.set(yticks=rows, yticklabels=names, xlim=(0, 1), xlabel="intersection over union")
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.legend(loc="lower right", fontsize=7)
    return figure
