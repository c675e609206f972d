"""The common part of pictures and tables of a confusion matrix."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.epochs import due
from callbacks.inspection import class_colours, class_names, confusion_of, weights_of
from utils.logging import Chart, log_chart, log_figure


@dataclass(frozen=True)
class Counts:
    """A confusion matrix, and how to label it.

    Attributes:
        confusion: `(C, C)`, rows the truth.
        names: of the classes.
        where: which images and weights, in words.
        colours: of labels, `(256, 3)`.
    """

    confusion: Tensor
    names: tuple[str, ...]
    where: str
    colours: NDArray[np.uint8]


class ConfusionFigure(Callback):
    """Draws the counts of the held-out images, and at the end those of the test images.

    Args:
        every_n_epochs: when to draw.

    Attributes:
        kind: folder and key of the picture.
    """

    kind: str

    def __init__(self, every_n_epochs: int) -> None:
        self.every_n_epochs = every_n_epochs

    @abstractmethod
    def picture(self, counts: Counts) -> Figure:
        """Draws the counts."""

    @abstractmethod
    def chart(self, counts: Counts) -> Chart:
        """Returns the counts as a table."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the counts of the held-out images."""
        if due(trainer, self.every_n_epochs):
            self._draw(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the counts of the test images."""
        self._draw(trainer, pl_module, "test")

    def _draw(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        confusion = confusion_of(pl_module, split)
        if confusion is not None:
            where = f"{split} images, {weights_of(trainer)}"
            counts = Counts(confusion, class_names(pl_module), where, class_colours(pl_module))
            log_figure(trainer, f"{self.kind}/{split}", self.picture(counts))
            log_chart(trainer, f"{self.kind}/{split}", self.chart(counts))
