"""Semantic segmentation: a head on a backbone, frozen or trained with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassJaccardIndex,
    MulticlassPrecision,
    MulticlassRecall,
)

from agents.build import build_backbone, data_sets
from agents.optimizers import configure
from config import names
from config.hparams import Hparams
from datamodules.base import ImageSource, MaskedSource
from datamodules.loading import Loading
from datamodules.segmentation import SegmentationBatch, SegmentationDataModule
from datamodules.transforms.segmentation import pad_to_multiple
from models.backbones.base import Backbone, Features
from models.heads.base import Head, resize
from models.heads.loading import load_head
from models.losses.segmentation import SegmentationLoss
from utils.console import console
from utils.palette import VOID


class Segmentation(LightningModule):
    """Labels every pixel with one of the data set's classes.

    Trained on crops; judged on whole images, by the protocol of the settings.

    Args:
        backbone: gives the maps; where it is frozen no graph is built through it.
        head: maps to logits.
        classes: names by label.
        hparams: groups `segmentation` and `optim`.

    Attributes:
        monitor, facts, trains: see `agents.trainer.Agent`; chosen on training images held out.
        confusion: the last counts of `val` and `test`, `(C, C)` int64, rows the truth.
    """

    monitor = ("val/miou", "max")
    trains = True

    def __init__(
        self, backbone: Backbone, head: Head, classes: Sequence[str], hparams: Hparams
    ) -> None:
        super().__init__()
        self.settings = hparams
        self.backbone = backbone
        self.head = head
        self.classes = tuple(classes)
        settings = hparams.segmentation
        losses = [names.LOSSES[name].load() for name in settings.loss]
        self.loss = SegmentationLoss(losses, settings.loss_weights or [1.0] * len(losses))
        self.val_metrics, self.test_metrics = metrics(len(classes)), metrics(len(classes))
        self.confusion: dict[str, Tensor] = {}
        self.facts = {"protocol": settings.protocol}
        self.lr = float(hparams.optim.lr)
        # Logits are cut back to the image after padding, so that they stay aligned with it.
        self.multiple = max(backbone.patch_multiple, *backbone.map_strides)
        self._training_pass = (
            torch.compile(self._encode) if hparams.trainer.compile else self._encode
        )

    @classmethod
    def build(cls, hparams: Hparams, load: bool = True) -> Segmentation:
        """Builds the agent; `load` False leaves it at random, for a checkpoint to fill."""
        backbone = build_backbone(hparams, load)
        classes = masked(names.DATASETS[hparams.data.name].load(), hparams.data.name).classes
        settings = hparams.segmentation
        head: Head = names.HEADS[settings.head].load()(
            backbone.map_channels, backbone.map_strides, len(classes)
        )
        if load and (report := load_head(head, settings.head_weights, hparams.run.dir)):
            console.info("%s", report)
        return cls(backbone, head, classes, hparams)

    @staticmethod
    def data(source: ImageSource, hparams: Hparams, loading: Loading) -> SegmentationDataModule:
        """Images with masks, a part of the training images held out for choices."""
        settings = hparams.data
        protocol = names.PROTOCOLS[hparams.segmentation.protocol].load()(settings.image_size)
        classes = masked(type(source), settings.name).classes
        if protocol.needs_background and classes[0] != "background":
            raise ValueError(
                f"--segmentation.protocol {hparams.segmentation.protocol} counts void as "
                f"background, which {settings.name} does not have."
            )
        return SegmentationDataModule(
            cast(MaskedSource, source),
            protocol,
            settings.image_size,
            loading,
            settings.val_fraction,
        )

    def _encode(self, images: Tensor) -> Features:
        features: Features = self.backbone(images)
        return features

    def logits(self, images: Tensor) -> Tensor:
        """Returns `(B, C, H, W)` for images `(B, 3, H, W)` uint8 of any size."""
        padded = pad_to_multiple(images, self.multiple)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.backbone.frozen):
            # Whole images have many sizes: each would be compiled anew.
            features = (self._training_pass if self.training else self._encode)(padded)
        logits: Tensor = self.head(features, (padded.shape[-2], padded.shape[-1]))
        return logits[..., : images.shape[-2], : images.shape[-1]]

    def training_step(self, batch: SegmentationBatch, batch_idx: int) -> dict[str, Tensor]:
        """Loss of a batch of crops, with the `logits` `(B, C, H, W)` for callbacks."""
        logits = self.logits(batch.images)
        loss = self.loss(logits, batch.labels)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        self.log("train/lr", self.trainer.optimizers[0].param_groups[-1]["lr"])
        return {"loss": loss, "logits": logits.detach()}

    def validation_step(self, batch: SegmentationBatch, batch_idx: int) -> dict[str, Any]:
        """Judges held-out training images; see `judge`."""
        return self.judge(batch, "val")

    def test_step(self, batch: SegmentationBatch, batch_idx: int) -> dict[str, Any]:
        """Judges test images; see `judge`."""
        return self.judge(batch, "test")

    def judge(self, batch: SegmentationBatch, split: str) -> dict[str, Any]:
        """Compares whole images with their labels, by the protocol.

        Returns:
            `loss`, the mean over the images, and `predictions`, one `(H, W)` uint8 per image.
        """
        measured = self._metrics(split)
        items = list(batch.items())
        losses, predictions = [], []
        for logits, (_, labels) in zip(self._each([i for i, _ in items]), items, strict=True):
            upsampled = resize(logits[None].float(), (labels.shape[0], labels.shape[1]))
            losses.append(self.loss(upsampled, labels[None]))
            predictions.append(upsampled.argmax(1)[0].to(torch.uint8))
            measured.update(predictions[-1][None].int(), labels[None].int())
        loss = torch.stack(losses).mean()
        self.log(f"{split}/loss", loss, batch_size=len(batch), sync_dist=True)
        return {"loss": loss, "predictions": predictions}

    def _each(self, images: Sequence[Tensor]) -> list[Tensor]:
        # Images of one size pass together; padding them to a common one would change the result.
        by_size: dict[torch.Size, list[int]] = {}
        for position, image in enumerate(images):
            by_size.setdefault(image.shape, []).append(position)
        found: dict[int, Tensor] = {}
        for positions in by_size.values():
            logits = self.logits(torch.stack([images[position] for position in positions]))
            found |= dict(zip(positions, logits, strict=True))
        return [found[position] for position in range(len(images))]

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics of the held-out images."""
        self._report("val")

    def on_test_epoch_end(self) -> None:
        """Logs the metrics of the test images, every class among them."""
        self._report("test")

    def _metrics(self, split: str) -> MetricCollection:
        return self.val_metrics if split == "val" else self.test_metrics

    def _report(self, split: str) -> None:
        measured = self._metrics(split)
        found = measured.compute()
        measured.reset()
        confusion, by_class = found.pop("confusion"), found.pop("iou")
        self.confusion[split] = confusion.cpu()
        self.log_dict({f"{split}/{name}": value for name, value in found.items()})
        if split == "test":
            self.log_dict(
                {
                    f"test/iou/{name}": value
                    for name, value, there in zip(
                        self.classes, by_class, occurs(confusion), strict=True
                    )
                    if there
                }
            )

    def configure_optimizers(self) -> Any:
        """Optimizer and stepwise schedule; frozen parameters are left out."""
        multiplier = self.settings.segmentation.head_lr_multiplier
        return configure(
            self, {self.backbone: 1.0, self.head: multiplier}, self.settings.optim, self.lr
        )

    def in_words(self, summary: Mapping[str, Any]) -> list[str]:
        """Says what the final numbers mean."""
        if "test/miou" not in summary:
            return ["The run did not get as far as the test."]
        protocol = self.settings.segmentation.protocol
        judged = int(self.confusion["test"].sum())
        by_class = sorted(
            (
                (summary[f"test/iou/{name}"], name)
                for name in self.classes
                if f"test/iou/{name}" in summary
            ),
            reverse=True,
        )
        absent = len(self.classes) - len(by_class)
        lines = [
            f"Test mIoU {summary['test/miou']:.3f} ({protocol}), mean of {len(by_class)} classes "
            f"over {judged / 1e6:.1f} M pixels; pixel accuracy {summary['test/accuracy']:.3f}.",
            "Best:  " + ", ".join(f"{name} {value:.2f}" for value, name in by_class[:4]),
            "Worst: " + ", ".join(f"{name} {value:.2f}" for value, name in by_class[:-5:-1]),
        ]
        if absent:
            lines.append(f"{absent} classes neither occur nor are predicted: left out of the mean.")
        return lines


def masked(source: type, name: str) -> type[MaskedSource]:
    """Returns `source` when its images have masks.

    Raises:
        ValueError: they have none.
    """
    if not issubclass(source, MaskedSource):
        raise ValueError(
            f"--data.name {name} has no masks; segmentation works with {data_sets(MaskedSource)}."
        )
    return source


def metrics(num_classes: int) -> MetricCollection:
    """The numbers of a segmentation, from one confusion over all pixels of all images.

    `miou` is the mean over the classes that occur or are predicted; `f1`, `precision` and `recall`
    are macro averages over the same classes, `accuracy` counts pixels.
    """
    common: dict[str, Any] = {"ignore_index": VOID, "validate_args": False}
    macro: dict[str, Any] = {"average": "macro", **common}
    return MetricCollection(
        {
            "confusion": MulticlassConfusionMatrix(num_classes, **common),
            "miou": MulticlassJaccardIndex(num_classes, **macro),
            "iou": MulticlassJaccardIndex(num_classes, average="none", **common),
            "accuracy": MulticlassAccuracy(num_classes, average="micro", **common),
            "f1": MulticlassF1Score(num_classes, **macro),
            "precision": MulticlassPrecision(num_classes, **macro),
            "recall": MulticlassRecall(num_classes, **macro),
        }
    )


def occurs(confusion: Tensor) -> Tensor:
    """Marks the classes that occur or are predicted, `(C,)` bool: those a mean IoU is over."""
    return (confusion.sum(0) + confusion.sum(1)) > 0
