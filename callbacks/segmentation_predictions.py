"""Draws image, truth, prediction and error side by side."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.epochs import due
from callbacks.inspection import class_colours, class_names, weights_of
from callbacks.step_outputs import CropOutputs, EvaluationOutputs, outputs_of
from datamodules.masked_images import SegmentationBatch
from models.heads.base import resize
from utils import figures
from utils.logging import log_figure, log_masks
from utils.palette import VOID, VOID_GREY, hex_colour, unlike
from utils.spacing import evenly_from_first_to_last

_RIGHT = (255, 255, 255)


class Judged(NamedTuple):
    """An image `(3, h, w)`, its labels and predicted labels, `(H, W)`; uint8, on the CPU."""

    image: Tensor
    labels: Tensor
    prediction: Tensor

    def in_words(self) -> str:
        """Says how much of it is right."""
        valid = self.labels != VOID
        right = (valid & (self.labels == self.prediction)).sum() / valid.sum().clamp(min=1)
        return f"{right:.0%} of the pixels right"


class SegmentationPredictions(Callback):
    """Draws some training crops, held-out images and, at the end, test images.

    With several processes they come from the first one's share of the images.

    Args:
        every_n_epochs: when to draw.
        num_images: rows, the same images every time, evenly spaced over the share.

    Attributes:
        kept: images to draw, by split.
        chosen: numbers of the images to keep, in the order of this process.
        judged: number of images seen so far.
    """

    def __init__(self, every_n_epochs: int, num_images: int) -> None:
        self.every_n_epochs = every_n_epochs
        self.num_images = num_images
        self.kept: dict[str, list[Judged]] = {"train": [], "val": [], "test": []}
        self.chosen: set[int] = set()
        self.judged = 0

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keeps the first crops of an epoch, if the run resumed in its middle the first since."""
        shown = outputs_of(outputs, CropOutputs)
        if shown and not self.kept["train"] and due(trainer, self.every_n_epochs):
            logits = shown.logits[: self.num_images]
            # The loss may be on a coarser grid than the labels.
            finest = resize(logits.float(), batch.labels.shape[1:])
            self._keep("train", batch, finest.argmax(1).byte(), range(self.num_images))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the chosen images."""
        if due(trainer, self.every_n_epochs):
            self._keep_chosen("val", trainer.num_val_batches, outputs, batch, batch_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the chosen images."""
        self._keep_chosen("test", trainer.num_test_batches, outputs, batch, batch_idx)

    def _keep_chosen(
        self, split: str, batches: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            # Only up to the first image of the last batch, as that may be short.
            last = (int(batches[0]) - 1) * len(batch) or len(batch) - 1
            self.chosen = set(evenly_from_first_to_last(range(last + 1), self.num_images))
            self.judged = 0
        rows = [row for row in range(len(batch)) if self.judged + row in self.chosen]
        self.judged += len(batch)
        if shown := outputs_of(outputs, EvaluationOutputs):
            self._keep(split, batch, shown.predictions, rows)

    def _keep(
        self, split: str, batch: SegmentationBatch, predictions: Any, rows: Container[int]
    ) -> None:
        for row, (image, labels) in enumerate(batch.items()):
            if row in rows:
                kept = (image.cpu(), labels.cpu(), predictions[row].cpu())
                self.kept[split].append(Judged(*kept))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the crops."""
        self._draw(trainer, pl_module, "train", "training crops")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the held-out images."""
        self._draw(trainer, pl_module, "val", "held-out training images")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the test images."""
        self._draw(trainer, pl_module, "test", "test images")

    def _draw(self, trainer: Trainer, pl_module: LightningModule, split: str, what: str) -> None:
        kept, self.kept[split] = self.kept[split], []  # even if drawing fails
        if kept:
            names = class_names(pl_module)
            colours = class_colours(pl_module)
            title = f"Segmentation of {what}, {weights_of(trainer)}"
            kind = f"segmentation_predictions/{split}"
            arrays = {
                f"{part}-{number}": value.numpy()
                for number, each in enumerate(kept)
                for part, value in each._asdict().items()
            }
            log_figure(
                trainer,
                kind,
                draw(kept, names, title, colours),
                {"names": np.array(names), "colours": colours, **arrays},
            )
            captions = [f"row {row}: {each.in_words()}" for row, each in enumerate(kept, start=1)]
            overlay = (*_for_overlay(kept), dict(enumerate(names)), captions)
            log_masks(trainer, f"{kind}/overlay", *overlay)


def _for_overlay(
    kept: list[Judged],
) -> tuple[list[NDArray[np.uint8]], dict[str, list[NDArray[np.uint8]]]]:
    images = [
        F.interpolate(each.image[None].float(), each.labels.shape, mode="bilinear")[0]
        for each in kept
    ]
    return [image.byte().permute(1, 2, 0).numpy() for image in images], {
        "ground truth": [each.labels.numpy() for each in kept],
        "prediction": [each.prediction.numpy() for each in kept],
    }


def draw(
    judged: list[Judged],
    names: tuple[str, ...],
    title: str,
    colours: NDArray[np.uint8],
) -> Figure:
    """Draws one row per image; the legend names the classes that occur in the figure.

    Args:
        judged: the images.
        names: by label.
        title: of the figure.
        colours: by label, `(256, 3)`.
    """
    figure, axes = figures.grid(len(judged), 4, cell=(2.2, 1.75), title=title)
    present: set[int] = set()
    wrong_colour = unlike(np.vstack([colours[: len(names)], [_RIGHT, VOID_GREY]]))
    for row, each in zip(axes, judged, strict=True):
        image, labels, prediction = each
        truth, guess = labels.numpy(), prediction.numpy()
        valid = truth != VOID
        wrong = valid & (truth != guess)
        error = np.full((*truth.shape, 3), _RIGHT, np.uint8)
        error[wrong], error[~valid] = wrong_colour, VOID_GREY
        pictures = (image.permute(1, 2, 0).numpy(), colours[truth], colours[guess], error)
        for axis, picture in zip(row, pictures, strict=True):
            figures.show_image(axis, picture, aspect="auto" if picture is pictures[0] else None)
            axis.set_box_aspect(truth.shape[0] / truth.shape[1])
        row[3].set_xlabel(each.in_words(), fontsize=7)
        present |= set(np.unique(truth[valid]).tolist()) | set(np.unique(guess).tolist())
    for axis, label in zip(axes[0], ("image", "truth", "prediction", "error"), strict=True):
        axis.set_title(label)
    wrong_or_right = [
        Patch(color=hex_colour(wrong_colour), label="wrong"),
        Patch(facecolor="white", edgecolor="grey", label="right"),
    ]
    name_colours(figure, names, present, colours, wrong_or_right)
    return figure


def name_colours(
    figure: Figure,
    names: tuple[str, ...],
    present: set[int],
    colours: NDArray[np.uint8],
    more: Sequence[Patch] = (),
) -> None:
    """Adds a legend of the labels that occur in a figure, of void, and of `more`."""
    handles = [
        Patch(color=hex_colour(colours[k]), label=figures.name(names[k])) for k in sorted(present)
    ]
    handles.append(Patch(color=hex_colour(colours[VOID]), label="void: not judged"))
    figure.legend(handles=[*handles, *more], loc="outside lower center", ncols=6, fontsize=7)
