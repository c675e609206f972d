"""How much a pixel of each class counts in the training of a segmentation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from config.hparams import SegmentationHparams
from config.rules import as_typed
from datamodules.segmentation import SegmentationDataModule
from models.losses.segmentation import inverse_frequency
from utils.console import console

_NAMED = 8


def class_weights(
    settings: SegmentationHparams, classes: Sequence[str], data: SegmentationDataModule
) -> Tensor | None:
    """Returns the weight of each class, `(C,)`; None where all count as often as they occur.

    Args:
        settings: that say which.
        classes: names by label.
        data: whose masks have been looked at.

    Raises:
        ValueError: not one weight for each class.
    """
    if settings.class_weights == "none":
        return None
    if settings.class_weights == "inverse_frequency":
        weights = inverse_frequency(data.class_pixels)
    else:
        listed = settings.listed_class_weights
        if len(listed) != len(classes) or not any(listed):
            raise ValueError(
                f"--segmentation.listed_class_weights {as_typed(listed)}: expected one for each of "
                f"{len(classes)} classes, not all of them 0: {', '.join(classes[:_NAMED])}."
            )
        weights = torch.tensor(listed)
    by_weight = sorted(zip(weights.tolist(), classes, strict=True), reverse=True)
    said = ", ".join(f"{name} {weight:.3g}" for weight, name in by_weight[:_NAMED])
    more = f" … {by_weight[-1][1]} {by_weight[-1][0]:.3g}" if len(by_weight) > _NAMED else ""
    console.info("class weights: %s%s", said, more)
    return weights
