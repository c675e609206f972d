"""What pictures and tables of a confusion matrix have in common."""

from __future__ import annotations

from abc import abstractmethod

from matplotlib.figure import Figure
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.inspection import class_names, confusion_of, due
from utils.logging import Chart, log_chart, log_figure


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
    def picture(self, confusion: Tensor, names: tuple[str, ...], where: str) -> Figure:
        """Draws counts `(C, C)`, rows the truth."""

    @abstractmethod
    def chart(self, confusion: Tensor, names: tuple[str, ...], where: str) -> Chart:
        """Returns the same as a table."""

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
            shown = (confusion, class_names(pl_module), where)
            log_figure(trainer, f"{self.kind}/{split}", self.picture(*shown))
            log_chart(trainer, f"{self.kind}/{split}", self.chart(*shown))
