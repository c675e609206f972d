"""What is counted of a segmentation, and what the final numbers say in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

from utils.palette import VOID


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


def result_in_words(
    summary: Mapping[str, Any], classes: Sequence[str], confusion: Tensor, protocol: str
) -> list[str]:
    """Says what the test found.

    Args:
        summary: with `test/…`.
        classes: names by label.
        confusion: counts of the test, `(C, C)`.
        protocol: its name.
    """
    judged = int(confusion.sum())
    by_class = sorted(
        ((summary[f"test/iou/{name}"], name) for name in classes if f"test/iou/{name}" in summary),
        reverse=True,
    )
    absent = len(classes) - len(by_class)
    lines = [
        f"Test mIoU {summary['test/miou']:.3f} ({protocol}), mean of {len(by_class)} classes "
        f"over {judged / 1e6:.1f} M pixels; pixel accuracy {summary['test/accuracy']:.3f}.",
        "Best:  " + ", ".join(f"{name} {value:.2f}" for value, name in by_class[:4]),
        "Worst: " + ", ".join(f"{name} {value:.2f}" for value, name in by_class[:-5:-1]),
    ]
    if absent:
        lines.append(f"{absent} classes neither occur nor are predicted: left out of the mean.")
    return lines
