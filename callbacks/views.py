"""Draws the augmented images as the network sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.epochs import due
from callbacks.inspection import class_colours
from utils import figures
from utils.logging import log_figure


class Views(Callback):
    """Draws the views of the first images of an epoch.

    Args:
        every_n_epochs: when to draw.
        num_images: number of columns.
    """

    def __init__(self, every_n_epochs: int, num_images: int) -> None:
        self.every_n_epochs = every_n_epochs
        self.num_images = num_images
        self.kept: dict[str, Tensor] = {}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the first batch, if the run resumed in the middle of the epoch the first since."""
        if not self.kept and due(trainer, self.every_n_epochs):
            self.kept = batch.previews(self.num_images)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws it."""
        kept, self.kept = self.kept, {}
        if kept:
            title = f"Augmented views of training images, epoch {trainer.current_epoch + 1}"
            log_figure(trainer, "views/train", draw(kept, title, class_colours(pl_module)))


def draw(views: Mapping[str, Tensor], title: str, colours: NDArray[np.uint8]) -> Figure:
    """Draws named views, one row per view, one column per image.

    Args:
        views: images `(n, 3, H, W)` or labels `(n, H, W)`, uint8.
        title: of the figure.
        colours: of the labels, `(256, 3)`.
    """
    columns = len(next(iter(views.values())))
    figure, sheet = figures.sheet(len(views), columns, title=title, beside=0.5)
    for row, (name, images) in enumerate(views.items()):
        sheet.left(row, name)
        for column, image in enumerate(images):
            pixels = image.cpu().numpy()
            shown = colours[pixels] if image.ndim == 2 else pixels.transpose(1, 2, 0)
            sheet.show(row, column, shown)
    return figure
