"""Draws patch features as colours: alike where the features are (Amir et al. 2021, DINOv2)."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from callbacks.frozen import BackbonePicture, cached
from callbacks.inspection import backbone_of, held_out_examples, inspecting
from utils import figures
from utils.logging import log_figure


class FeatureMaps(BackbonePicture):
    """Draws the first three principal components of the last map as red, green and blue.

    All images of a figure share the components, so a colour means the same direction everywhere.

    Args:
        every_n_epochs: when to draw.
        num_images: columns, of the validation set if there is one.
    """

    def __init__(self, every_n_epochs: int, num_images: int) -> None:
        super().__init__(every_n_epochs)
        self.num_images = num_images

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws."""
        backbone = backbone_of(pl_module)
        if not self.is_due(trainer, backbone):
            return
        images, split = held_out_examples(trainer, backbone, self.num_images, enlarged=2)

        def look() -> tuple[Tensor, list[float], int]:
            with inspecting(pl_module, trainer.precision_plugin):
                maps = backbone(images.to(pl_module.device)).maps[-1].float().cpu()
            return *principal_colours(maps), maps.shape[1]

        facts = {"layers": backbone.layers[-1:]}
        colours, explained, dimensions = cached(
            trainer, backbone, "feature maps", facts, images, look
        )
        title = (
            f"First three principal components of the features, {split} images at "
            f"{images.shape[-1]} px, step {trainer.global_step}\n"
            f"red {explained[0]:.0%}, green {explained[1]:.0%}, blue {explained[2]:.0%} of the "
            f"variance; {dimensions} dimensions"
        )
        log_figure(trainer, "feature_maps", draw(images, colours, title))


def principal_colours(maps: Tensor) -> tuple[Tensor, list[float]]:
    """Projects `(B, C, h, w)` on its first three principal components, common to all images.

    Each component is stretched from its 1st to its 99th percentile. Its largest coefficient is made
    positive, so that repeated calls agree.

    Returns:
        `(B, h, w, 3)` in 0 … 1, and the share of the variance each component explains. A component
        beyond the rank is 0.5 and explains 0.
    """
    x = maps.movedim(1, -1).flatten(0, 2).double()  # (B*h*w, C)
    x = x - x.mean(0)
    variances, directions = torch.linalg.eigh(x.T @ x / len(x))  # ascending
    count = min(3, x.shape[1])
    top = directions[:, -count:].flip(1)
    largest = top.gather(0, top.abs().argmax(0, keepdim=True))
    projected = x @ (top * largest.sign())
    low, high = (torch.quantile(projected[:: 1 + len(x) // 100_000], q, 0) for q in (0.01, 0.99))
    scaled = ((projected - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    shares = (variances.flip(0)[:count].clamp(min=0) / variances.sum().clamp(min=1e-30)).tolist()
    meaningful = (high - low) > 1e-9
    scaled = torch.where(meaningful, scaled, 0.5)
    padded = torch.full((len(x), 3), 0.5, dtype=scaled.dtype)
    padded[:, :count] = scaled
    return (
        padded.unflatten(0, (len(maps), *maps.shape[-2:])).float(),
        [*shares, *[0.0] * (3 - count)],
    )


def draw(images: Tensor, colours: Tensor, title: str) -> Figure:
    """Draws images `(B, 3, H, W)` uint8 above colours `(B, h, w, 3)`."""
    height = images.shape[-2] / images.shape[-1]
    figure, sheet = figures.sheet(2, len(images), 1.8, title, height)
    for column, (image, colour) in enumerate(zip(images, colours, strict=True)):
        sheet.show(0, column, image.permute(1, 2, 0).numpy())
        sheet.show(1, column, colour.numpy())
    sheet.left(0, "image")
    sheet.left(1, "components")
    return figure
