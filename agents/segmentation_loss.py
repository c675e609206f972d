"""Builds the loss of a segmentation and its class weights from the settings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from config import names
from config.errors import as_typed
from config.hparams import SegmentationHparams
from datamodules.segmentation import SegmentationDataModule
from models.losses.segmentation import SegmentationLoss, WeightedCrossEntropy, inverse_frequency
from utils.console import console
from utils.imports import load

_NAMED = 8


def build_loss(
    settings: SegmentationHparams, class_weights: Tensor | None = None
) -> SegmentationLoss:
    """Builds the weighted sum of the chosen losses.

    Args:
        settings: choose the losses.
        class_weights: `(C,)`, for the cross-entropy; None: all pixels count alike.
    """
    terms = {name: load(names.LOSSES[name]) for name in settings.loss}
    if class_weights is not None and "cross_entropy" in terms:
        terms["cross_entropy"] = WeightedCrossEntropy(class_weights)
    return SegmentationLoss(
        [terms[name] for name in settings.loss], settings.loss_weights or [1.0] * len(settings.loss)
    )


def weigh_classes(
    settings: SegmentationHparams, classes: Sequence[str], data: SegmentationDataModule
) -> Tensor | None:
    """Returns the weight of each class, `(C,)`; None: they are not weighted.

    Args:
        settings: choose the weights.
        classes: names by label.
        data: its masks have been read.

    Raises:
        ValueError: there is not one weight for each class, or all are 0.
    """
    if settings.class_weights == "none":
        return None
    if settings.class_weights == "inverse_frequency":
        weights = inverse_frequency(data.class_pixels)
    else:
        listed = settings.listed_class_weights
        if len(listed) != len(classes) or not any(listed):
            given = f" {as_typed(listed)}" if listed else ""
            raise ValueError(
                f"--segmentation.listed_class_weights{given}: expected one for each of "
                f"{len(classes)} classes, not all of them 0: {', '.join(classes)}."
            )
        weights = torch.tensor(listed)
    by_weight = sorted(zip(weights.tolist(), classes, strict=True), reverse=True)
    said = ", ".join(f"{name} {weight:.3g}" for weight, name in by_weight[:_NAMED])
    more = f" … {by_weight[-1][1]} {by_weight[-1][0]:.3g}" if len(by_weight) > _NAMED else ""
    console.info("class weights: %s%s", said, more)
    return weights
