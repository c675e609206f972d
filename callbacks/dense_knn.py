"""Measures during training how well patches find patches of the same class in other images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from callbacks.inspection import backbone_of, data_of, inspecting
from callbacks.readout import Readout
from datamodules.base import ImageDataModule
from datamodules.masked_squares import MaskedSquares, masked_squares
from datamodules.sources import MaskedSource
from models.backbones.base import Backbone
from models.heads.base import resize
from models.measures.dense_knn import NEAREST, PatchMemory, labelled_patches
from models.measures.segmentation import mean_iou

METRIC = "val/dense_knn_miou"
_HELD_OUT = 0.2  # share of the images that are queries
_IMAGES_AT_ONCE = 64

Examples = Iterable[tuple[Tensor, Tensor]]  # images (3, S, S) uint8, labels (H, W) uint8


class DenseKNN(Readout):
    """Logs `val/dense_knn_miou` of the saved backbone: before, during and after training.

    Like the online probe it uses labelled *training* images, some held out by a hash of their
    names: the test set is not touched. The measure (`models.measures.dense_knn`) uses the last
    layer's map. Images are decoded once and kept, at most 512 MiB (`datamodules.masked_squares`).

    Args:
        every_n_epochs: when to measure.
        num_images: labelled images used, a fifth of them as queries.
        k: neighbours.
    """

    headlines: Mapping[str, str] = {METRIC: "dense k-NN mIoU"}

    def __init__(self, every_n_epochs: int, num_images: int, k: int) -> None:
        super().__init__(every_n_epochs)
        self.num_images = num_images
        self.k = k
        self._squares: tuple[MaskedSquares, MaskedSquares] | None = None

    def facts(self, data: ImageDataModule) -> dict[str, Any]:
        """See `Readout.facts`."""
        own = {"callbacks.dense_knn.num_images": self.num_images, "callbacks.dense_knn.k": self.k}
        return super().facts(data) | own

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """See `Readout.measure`.

        Raises:
            ValueError: no image is held out, or none of the others has labels.
        """
        data, backbone = data_of(trainer), backbone_of(pl_module)
        if not isinstance(data.source, MaskedSource):
            self.say("dense_knn: these images have no masks.")
            return {}
        size = backbone.side_near(data.image_size)
        if self._squares is None:
            self._squares = masked_squares(data.source, self.num_images, _HELD_OUT, size)
        known, queries = self._squares
        if not len(queries):
            raise ValueError(
                f"dense_knn: none of {len(known)} images with masks is held out. Raise "
                "--callbacks.dense_knn.num_images, or give more images."
            )
        with inspecting(pl_module, trainer.precision_plugin):
            miou = measure(backbone, known, queries, len(data.source.classes), self.k)
        if not math.isfinite(miou):
            self.say(
                "dense_knn: these masks show one class only, or nothing but void: there is "
                "nothing to tell apart, and nothing is measured."
            )
            return {}
        return {METRIC: miou}


def measure(
    backbone: Backbone, known: Examples, queries: Examples, num_classes: int, k: int = NEAREST
) -> float:
    """Labels images by the nearest patches of others.

    Args:
        backbone: in eval mode.
        known: fill the memory; images of one size.
        queries: are labelled, and judged at the resolution of their labels.
        num_classes: C.
        k: neighbours.

    Returns:
        mIoU, from one confusion matrix over the pixels of all queries; NaN if the known images
        show one class only, which every query would get, or if the queries are void.

    Raises:
        ValueError: the known images are void everywhere.
    """
    device = backbone.mean.device
    memory = PatchMemory(backbone.map_channels[-1], num_classes, k).to(device)
    parts = [
        labelled_patches(each, labels, num_classes)
        for maps, masks in _encoded(backbone, known)
        for each, labels in zip(maps, masks, strict=True)
    ]
    features, shares = zip(*parts, strict=True) if parts else ((), ())
    memory.fill(torch.cat([memory.features, *features]), torch.cat([memory.shares, *shares]))
    if int((memory.shares > 0).any(0).sum()) < 2:
        return math.nan
    counted = mean_iou(num_classes)
    for maps, masks in _encoded(backbone, queries):
        for each, labels in zip(memory.label_maps(maps).cpu(), masks, strict=True):
            found = resize(each[None], (labels.shape[0], labels.shape[1])).argmax(1)
            counted.update(found.int(), labels[None].int())
    return float(counted.compute()["miou"])


def _encoded(backbone: Backbone, examples: Examples) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """Yields last maps `(B, D, h, w)` of images, and their labels."""
    remaining = iter(examples)
    while some := list(islice(remaining, _IMAGES_AT_ONCE)):
        images, labels = zip(*some, strict=True)
        yield backbone(torch.stack(images).to(backbone.mean.device)).maps[-1], labels
