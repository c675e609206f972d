"""The metrics of a segmentation."""

from __future__ import annotations

from typing import Any

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

from models.measures.counting import counting
from utils.palette import VOID

_COMMON: dict[str, Any] = {"ignore_index": VOID, "validate_args": False}


class _Counts(MetricCollection):
    def update(self, *arguments: Any, **named: Any) -> None:
        with counting():
            super().update(*arguments, **named)


def mean_iou(num_classes: int) -> MetricCollection:
    """Only the `miou` of `metrics`, in a quarter of the time."""
    return _Counts({"miou": MulticlassJaccardIndex(num_classes, average="macro", **_COMMON)})


def metrics(num_classes: int) -> MetricCollection:
    """The metrics of a segmentation, from one confusion matrix over all pixels of all images.

    `miou` is the mean over the classes that occur or are predicted; `f1`, `precision` and `recall`
    are macro averages over the same classes; `accuracy` is the share of correct pixels.
    """
    macro: dict[str, Any] = {"average": "macro", **_COMMON}
    return _Counts(
        {
            "confusion": MulticlassConfusionMatrix(num_classes, **_COMMON),
            "miou": MulticlassJaccardIndex(num_classes, **macro),
            "iou": MulticlassJaccardIndex(num_classes, average="none", **_COMMON),
            "accuracy": MulticlassAccuracy(num_classes, average="micro", **_COMMON),
            "f1": MulticlassF1Score(num_classes, **macro),
            "precision": MulticlassPrecision(num_classes, **macro),
            "recall": MulticlassRecall(num_classes, **macro),
        }
    )


def occurs(confusion: Tensor) -> Tensor:
    """Marks the classes that occur or are predicted, `(C,)` bool: the mean IoU is over these."""
    return (confusion.sum(0) + confusion.sum(1)) > 0
