"""Reads masks of labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.loading import UNREADABLE
from utils.palette import VOID


def read_labels(file: Path, num_classes: int, meanings: NDArray[np.uint8] | None = None) -> Tensor:
    """Reads a mask as `(H, W)` uint8.

    Args:
        file: palette or grey PNG.
        num_classes: labels are 0 … num_classes - 1, and 255 void.
        meanings: see `MaskedSource.meanings`.

    Raises:
        ValueError: not a palette or grey image, or labels that are no classes.
    """
    try:
        with Image.open(file) as opened:
            if opened.mode not in ("P", "L"):
                raise ValueError(
                    f"{file} is a mask in mode {opened.mode}: expected labels as a palette or grey "
                    "PNG, not colours."
                )
            labels = np.array(opened)
    except UNREADABLE as error:
        raise ValueError(f"The mask {file} cannot be read ({error}).") from error
    found = np.unique(labels)
    meant = found if meanings is None else meanings[found]
    foreign = found[(meant >= num_classes) & (meant != VOID)]
    if len(foreign):
        expected = f"0 to {num_classes - 1}" if meanings is None else "those of the data set"
        raise ValueError(
            f"{file} has labels {foreign[:5].tolist()}: expected {expected}, or {VOID} for void. "
            "These are the masks of another data set."
        )
    return torch.from_numpy(labels if meanings is None else meanings[labels])
