"""Measures how well attention heads find objects, against chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cache, partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from callbacks.frozen import cached
from callbacks.inspection import backbone_of, data_of, inspecting, weights_of
from callbacks.readout import Readout
from datamodules.base import ImageDataModule
from datamodules.sources import MaskedSource
from models.attention import AttentionRequest
from models.backbones.base import AttentionBackbone
from models.measures.attention_quality import AttentionMeter, Quality, pixel_counts
from utils import figures
from utils.logging import log_figure
from utils.palette import has_background

LIFT = "train/mass_lift"
_SOURCE = "Caron et al. 2021, fig. 4"
_LEAST_TOP = 0.3  # smallest upper end of the bars' axis
_MOST_WRITTEN = 8  # most heads for which each cell shows its number
_WORDS = (
    "Jaccard: overlap (intersection over union) of a head's mask with an object. Mass lift: log2 "
    "of the attention on objects over their share of the area; 1 is twice their share.\n"
    "Displaced maps: the same maps, shifted around the image, whose score is chance; "
    "chance-corrected: (J - chance) / (1 - chance).\n"
    "Information: share of the entropy of a patch's class that the masks of all heads together "
    "explain, less what displaced masks seem to explain. Average precision: attention as a score "
    "of object patches."
)
_FULL_SIZE, _SMALL = 480, 128  # the recipe's size, and training crops that are too small for it


class AttentionQuality(Readout):
    """Logs the quality of every block and the mass lift of all heads, and draws every head.

    During training it measures training images with masks, whose labels are not trained on; in the
    test, test images. For the numbers see `models.measures.attention_quality`.

    Args:
        every_n_epochs: when to measure; a frozen backbone is measured once.
        num_images: images measured during training.
        mass: share of attention a mask holds.
        num_test_images: images measured in the test, if there is one.
        image_size: shorter side in pixels; None: 480, for small images twice the training crop.
    """

    # The mean of all heads: any one may look away, and in a small network rounding decides which.
    headlines: Mapping[str, str] = {
        LIFT: "attention on objects (mass lift, mean of all heads, chance 0)"
    }

    def __init__(
        self,
        every_n_epochs: int,
        num_images: int,
        mass: float,
        num_test_images: int = 200,
        image_size: int | None = None,
    ) -> None:
        super().__init__(every_n_epochs)
        self.num_images = num_images
        self.num_test_images = num_test_images
        self.mass = mass
        self.image_size = image_size

    def facts(self, data: ImageDataModule) -> dict[str, Any]:
        """See `Readout.facts`."""
        own = {name: getattr(self, name) for name in ("num_images", "mass", "image_size")}
        named = {f"callbacks.attention_quality.{name}": value for name, value in own.items()}
        return super().facts(data) | named

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Measures training images."""
        return self._of(trainer, pl_module, "train", self.num_images)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures test images."""
        pl_module.log_dict(self._of(trainer, pl_module, "test", self.num_test_images))

    def _of(
        self, trainer: Trainer, pl_module: LightningModule, split: str, count: int
    ) -> dict[str, float]:
        if not count:
            return {}
        backbone = backbone_of(pl_module)
        if not isinstance(backbone, AttentionBackbone):
            self.say(f"attention_quality: {type(backbone).__name__} has no attention.")
            return {}
        if backbone.fixed_side:
            self.say("attention_quality: this network takes square images of one size only.")
            return {}
        data = data_of(trainer)
        source = data.source
        if not (isinstance(source, MaskedSource) and has_background(source.classes)):
            self.say("attention_quality: these images have no masks with a background.")
            return {}
        size = self.image_size or (_FULL_SIZE if data.image_size >= _SMALL else 2 * data.image_size)
        multiple, num_classes = backbone.patch_multiple, len(source.classes)
        examples = partial(data.masked_examples, split, count, size, multiple)

        def look() -> dict[int, dict[str, Any]]:
            with inspecting(pl_module, trainer.precision_plugin):
                found = measure(backbone, examples(), num_classes, self.mass)
            return {block: asdict(quality) for block, quality in found.items()}

        facts = {
            "mass": self.mass,
            "classes": num_classes,
            "queries": backbone.pool,
        }
        looked_at = chain.from_iterable(examples())
        name = f"attention quality of {split} images"
        found = cached(trainer, backbone, name, facts, looked_at, look)
        qualities = {block: Quality(**numbers) for block, numbers in found.items()}
        some = next(iter(qualities.values()))
        title = (
            f"How well attention finds objects: {some.images} {split} images at {size} px, "
            f"{weights_of(trainer)}"
        )
        figure = draw(qualities, title, source.published_jaccard)
        log_figure(trainer, f"attention_quality/{split}", figure)
        lift = torch.cat([quality.lift for quality in qualities.values()]).mean()
        of_blocks = {
            f"{split}/attention/block-{block + 1:02d}/{name}": value
            for block, quality in qualities.items()
            for name, value in quality.scalars().items()
            if np.isfinite(value)
        }
        return of_blocks | {f"{split}/mass_lift": float(lift)}


def measure(
    backbone: AttentionBackbone,
    examples: Iterator[tuple[Tensor, Tensor]],
    num_classes: int,
    mass: float,
) -> dict[int, Quality]:
    """Measures the attention of every block.

    Args:
        backbone: in eval mode.
        examples: images `(3, h, w)` uint8 and their labels `(H, W)`, 0 background.
        num_classes: with the background.
        mass: share of attention a mask holds.

    Returns:
        By block.
    """
    request = AttentionRequest(tuple(range(backbone.depth)), backbone.pool)
    collectors = [AttentionMeter(mass) for _ in range(backbone.depth)]
    for image, labels in examples:
        counts = cache(partial(pixel_counts, labels, num_classes=num_classes))  # by grid
        answer = backbone(image[None].to(backbone.mean.device), request).attention
        for attention in answer or ():
            maps = attention.patch_maps()[0, :, 0].float().cpu()
            collectors[attention.block].update(maps, counts(attention.grid))
    return {block: collector.compute() for block, collector in enumerate(collectors)}


def draw(qualities: Mapping[int, Quality], title: str, published: Mapping[str, float]) -> Figure:
    """Draws every head as a cell, and each block's best head beside chance and published values."""
    blocks = sorted(qualities)
    heads = max(len(qualities[block].lift) for block in blocks)
    cell = (max(2.6, 0.48 * heads + 1.4), 0.3 * len(blocks) + 1.1)
    figure, axes = figures.grid(2, 3, cell=(max(cell[0], 3.4), max(cell[1], 2.9)), title=title)
    panels = (
        ("jaccard_by_head", "Jaccard of each head", {"vmin": 0, "vmax": 0.6, "cmap": "viridis"}),
        ("lift", "mass lift, log2 (0: chance)", {"vmin": -2, "vmax": 2, "cmap": "RdBu_r"}),
        ("precision", "average precision", {"vmin": 0, "vmax": 1, "cmap": "viridis"}),
    )
    for axis, (name, label, settings) in zip(axes[0], panels, strict=True):
        values = np.full((len(blocks), heads), np.nan)
        for row, block in enumerate(blocks):
            found = getattr(qualities[block], name).numpy()
            values[row, : len(found)] = found
        _heat_map(axis, values, blocks, label, settings)
    chance = qualities[blocks[-1]].precision_chance
    axes[0, 2].set_title(f"average precision (chance {chance:.2f})")
    _lines(axes[1, 0], blocks, qualities, published)
    for axis, name, label in (
        (axes[1, 1], "jaccard_corrected", "chance-corrected Jaccard of the best head"),
        (axes[1, 2], "information", "information of all heads together"),
    ):
        found = [getattr(qualities[b], name) for b in blocks]
        axis.bar([b + 1 for b in blocks], found)
        axis.axhline(0, color="black", linewidth=1)
        axis.set(title=label, xlabel="block", xticks=[b + 1 for b in blocks])
        # Wide enough that noise around chance looks small.
        finite = [value for value in found if np.isfinite(value)]
        axis.set_ylim(min(-0.1, *finite, 0), 1.1 * max(_LEAST_TOP, *finite, 0))
    axes[1, 2].set_ylabel("share of the class entropy")
    figure.supxlabel(_WORDS, fontsize=7)
    return figure


def _heat_map(
    axis: Axes, values: NDArray[Any], blocks: list[int], label: str, settings: dict[str, Any]
) -> None:
    # Not seaborn's heatmap, which draws the whole figure to see whether labels overlap.
    cells = axis.pcolormesh(values, **settings)
    axis.figure.colorbar(cells, ax=axis)
    rows, columns = values.shape
    for (row, column), value in np.ndenumerate(values) if columns <= _MOST_WRITTEN else ():
        if np.isfinite(value):
            brightness = np.dot(cells.to_rgba(value)[:3], (0.299, 0.587, 0.114))
            axis.text(
                column + 0.5,
                row + 0.5,
                f"{value:z.2f}",
                ha="center",
                va="center",
                fontsize=6,
                color="white" if brightness < 0.5 else "0.15",
            )
    axis.set(title=label, xlabel="head", ylabel="block", ylim=(rows, 0))
    axis.set_xticks(np.arange(columns) + 0.5, [str(head + 1) for head in range(columns)])
    axis.set_yticks(np.arange(rows) + 0.5, [str(block + 1) for block in blocks])
    axis.grid(False)


def _lines(
    axis: Axes,
    blocks: list[int],
    qualities: Mapping[int, Quality],
    published: Mapping[str, float],
) -> None:
    places = [block + 1 for block in blocks]
    axis.plot(places, [qualities[b].jaccard for b in blocks], "o-", label="best head")
    axis.plot(places, [qualities[b].jaccard_chance for b in blocks], "o--", label="displaced maps")
    for number, (name, value) in enumerate(published.items()):
        colour = figures.HEADS[number + 2]
        axis.axhline(value, linestyle=":", color=colour, label=f"{name}: {value:.3f}")
    axis.set(title="Jaccard, best head of each block", xlabel="block", xticks=places)
    axis.set_ylim(0, max(0.5, *(q.jaccard * 1.1 for q in qualities.values())))
    title = f"dotted: {_SOURCE},\nfull validation list, last block" if published else None
    axis.legend(fontsize=6, title=title, title_fontsize=6)
