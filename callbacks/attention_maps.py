"""Draws what attention heads look at (after the DINO paper, Caron et al. 2021, figs. 1 and 3)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from callbacks.frozen import BackbonePicture, cached
from callbacks.inspection import SayOnce, backbone_of, data_of, inspecting
from models.attention import AttentionRequest, mass_mask
from models.backbones.base import AttentionBackbone
from utils import figures
from utils.logging import log_figure


class AttentionMaps(BackbonePicture):
    """Draws the attention of chosen blocks on fixed images of the training and validation set.

    Each image has the raw map of every head, with the outline of its mask (the fewest patches that
    hold `mass` of the attention), and one picture with the masks of all heads. A head has the same
    colour in all figures.

    Args:
        every_n_epochs: when to draw.
        num_images: rows.
        blocks: which blocks, negative from the end.
        queries: whose attention: `cls`, `mean` over patches, or `auto` by the backbone's pooling.
        mass: share of attention a mask holds.
        image_size: side of the images in pixels; None: twice that of the training crops. Larger
            images give finer maps.
    """

    def __init__(
        self,
        every_n_epochs: int,
        num_images: int,
        blocks: list[int],
        queries: Literal["auto", "cls", "mean"],
        mass: float,
        image_size: int | None = None,
    ) -> None:
        super().__init__(every_n_epochs)
        self.num_images = num_images
        self.blocks = tuple(blocks or [-1])
        self.queries = queries
        self.mass = mass
        self.image_size = image_size
        self.say = SayOnce()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks blocks and image size before training starts.

        Raises:
            ValueError: a block outside the network, or a size off the patch grid.
        """
        backbone = backbone_of(pl_module)
        if isinstance(backbone, AttentionBackbone):
            AttentionRequest(self.blocks).resolve(
                backbone.depth, "--callbacks.attention_maps.blocks"
            )
            if self.image_size is not None:
                backbone.check_side(self.image_size, "callbacks.attention_maps.image_size")
        else:
            self.say(f"attention_maps: {type(backbone).__name__} has no attention; nothing drawn.")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the training images."""
        self._draw(trainer, pl_module, "train")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the validation images."""
        if not trainer.sanity_checking:
            self._draw(trainer, pl_module, "val")

    def _draw(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        backbone = backbone_of(pl_module)
        if not (isinstance(backbone, AttentionBackbone) and self.is_due(trainer, backbone, split)):
            return
        data = data_of(trainer)
        size = self.image_size or backbone.side_near(2 * data.image_size)
        images = data.examples(split, self.num_images, size)
        request = AttentionRequest(self.blocks, self.queries_for(backbone))

        def look() -> dict[int, Tensor]:
            with inspecting(pl_module, trainer.precision_plugin):
                answer = backbone(images.to(pl_module.device), request).attention
            return {each.block: each.patch_maps()[:, :, 0].float().cpu() for each in answer or ()}

        facts = {"blocks": self.blocks, "queries": request.queries}
        found = cached(trainer, backbone, f"attention maps of {split} images", facts, images, look)
        for block, maps in found.items():  # (B, heads, h, w)
            title = (
                f"{_WHOSE[request.queries]} in block {block + 1} of {backbone.depth}, "
                f"{split} images at {size} px, step {trainer.global_step}"
            )
            figure = draw(images, maps, self.mass, title)
            arrays = {"images": images.numpy(), "maps": maps.numpy(), "mass": np.array(self.mass)}
            kind = f"attention_maps/{split}/block-{block + 1:02d}"
            log_figure(trainer, kind, figure, arrays)

    def queries_for(self, backbone: AttentionBackbone) -> Literal["cls", "mean"]:
        """Returns whose attention to draw; says so if it is never trained."""
        if self.queries == "cls" and backbone.pool == "mean":
            self.say(
                "attention_maps: with --backbone.pool mean the CLS attention of the last block is "
                "never trained; queries mean shows attention that is."
            )
        return backbone.pool if self.queries == "auto" else self.queries


_WHOSE = {"cls": "Attention of CLS to patches", "mean": "Mean attention a patch receives"}


def draw(images: Tensor, maps: Tensor, mass: float, title: str) -> Figure:
    """Draws images `(B, 3, H, W)` uint8 and their maps `(B, heads, h, w)`, one row per image.

    Each map is coloured over its own range, and shows the outline of its mask.
    """
    num_images, heads = maps.shape[:2]
    size = (images.shape[-2], images.shape[-1])
    patches = mass_mask(maps, mass)
    masks = F.interpolate(patches.float(), size=size).bool().numpy()
    relative = maps.flatten(-2).amax(-1) * maps[0, 0].numel() / maps.flatten(-2).sum(-1)
    figure, sheet = figures.sheet(
        num_images, heads + 2, 1.25, title, height=size[0] / size[1], foot=0.2, beside=1.1
    )
    for row, picture in enumerate(images.permute(0, 2, 3, 1).numpy()):
        sheet.show(row, 0, picture)
        sheet.show(row, 1, paint_masks(picture, masks[row]))
        for head in range(heads):
            sheet.show(row, head + 2, maps[row, head].numpy(), cmap="viridis")
            _outline(sheet, row, head + 2, patches[row, head].numpy())
            sheet.below(row, head + 2, f"peak {relative[row, head]:.1f} x uniform")
    sheet.above(0, "image")
    sheet.above(1, "masks of all heads")
    for head in range(heads):
        sheet.above(head + 2, f"head {head + 1}", color=_colour(head), weight="bold")
    bar = figure.colorbar(ScalarMappable(cmap="viridis"), ax=sheet.axis, shrink=0.5, ticks=[0, 1])
    bar.ax.set_yticklabels(["least", "most"])
    bar.set_label("attention, scaled per map")
    figure.supxlabel(
        f"white outline: the mask, the fewest patches with {mass:.0%} of a head's attention; in "
        "the second column all masks, each in its head's colour",
        fontsize=7,
    )
    return figure


def _outline(sheet: figures.Sheet, row: int, column: int, mask: NDArray[np.bool_]) -> None:
    """Draws the edges between patches `(h, w)` inside and outside a mask."""
    inside = np.pad(mask, 1)
    across = np.argwhere(inside[:-1, 1:-1] != inside[1:, 1:-1])
    down = np.argwhere(inside[1:-1, :-1] != inside[1:-1, 1:])
    starts = np.vstack([across, down])[:, ::-1]  # (x, y) in patches
    steps = np.vstack([np.tile([1, 0], (len(across), 1)), np.tile([0, 1], (len(down), 1))])
    patch = np.array([1 / mask.shape[1], sheet.height / mask.shape[0]])
    lines = np.stack([starts, starts + steps], 1) * patch + sheet.corner(row, column)
    sheet.axis.add_collection(
        LineCollection(list(lines), colors="white", linewidths=0.8), autolim=False
    )


def _colour(head: int) -> tuple[float, float, float]:
    return figures.HEADS[head % len(figures.HEADS)]


def paint_masks(image: NDArray[Any], masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Paints masks `(heads, H, W)` over an image `(H, W, 3)`, each head in its own colour."""
    shown = image.astype(float) * 0.35
    colours = np.array([_colour(head) for head in range(len(masks))]) * 255
    covered = masks.any(0)
    blend = (masks[..., None] * colours[:, None, None]).sum(0) / np.maximum(masks.sum(0), 1)[
        ..., None
    ]
    shown[covered] = 0.5 * image[covered] + 0.5 * blend[covered]
    return shown.clip(0, 255).astype(np.uint8)
