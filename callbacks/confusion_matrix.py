"""What each class is taken for."""

from __future__ import annotations

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.looking import class_names, confusion_of, due
from utils import figures
from utils.logging import log_figure


class ConfusionMatrix(Callback):
    """Draws it of the held-out images, and at the end of the test images.

    Args:
        every_n_epochs: when to draw.
    """

    def __init__(self, every_n_epochs: int = 10) -> None:
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
            log_figure(trainer, f"confusion_matrix/{split}", figure)


def draw(confusion: Tensor, names: tuple[str, ...], where: str) -> Figure:
    """Draws counts `(C, C)`, rows the truth, as shares of each row; empty rows stay blank."""
    counts = confusion.double().numpy()
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    side = 0.34 * len(names) + 1.6
    title = f"What the pixels of each class are taken for, {where}"
    figure, axes = figures.grid(1, 1, cell=(side + 1.2, side), title=title)
    text = np.where(shares >= 0.005, np.char.mod("%.0f", 100 * shares), "")
    sns.heatmap(
        shares,
        mask=np.broadcast_to(totals == 0, shares.shape),
        annot=text,
        fmt="",
        annot_kws={"fontsize": 6},
        vmin=0,
        vmax=1,
        cmap="Blues",
        xticklabels=names,
        yticklabels=names,
        cbar_kws={"label": "share of the true class's pixels (cells: %)", "shrink": 0.7},
        linewidths=0.3,
        linecolor="#dddddd",
        square=True,
        ax=axes[0, 0],
    )
    axes[0, 0].set(xlabel="predicted", ylabel="truth")
    axes[0, 0].tick_params(axis="x", rotation=90)
    return figure
