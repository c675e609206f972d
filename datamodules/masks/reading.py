"""Reads masks of labels, and images with their masks."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.masks.meanings import ForeignPixelsError, IndexMeanings, Meanings
from datamodules.reading import (
    UnreadableImageError,
    read_picture,
    read_values,
    swaps_sides,
    turned,
)
from utils.text import printable

FilePair = tuple[Path, Path]  # image, mask


def read_labels(file: Path, num_classes: int, meanings: Meanings | None = None) -> Tensor:
    """Reads a mask as `(H, W)` uint8.

    Args:
        file: the mask.
        num_classes: labels are 0 … num_classes - 1, and 255 void.
        meanings: see `MaskedSource.meanings`.

    Raises:
        ForeignPixelsError: it holds values that are no class; names the file.
        ValueError: it cannot be read.
    """
    try:
        mask = read_values(file)
    except UnreadableImageError as error:
        raise ValueError(f"The mask {error} cannot be read.") from error
    try:
        found = (meanings or IndexMeanings.of_labels(num_classes)).labels(mask)
    except ForeignPixelsError as error:
        raise ForeignPixelsError(f"{printable(file)} {error}") from error
    return torch.from_numpy(found)


class Fit(Enum):
    """How a mask fits an image with an EXIF orientation."""

    DISPLAYED = "as the image is displayed, or it has no orientation"
    STORED = "only as the image is stored: turned with it"
    EITHER = "both: taken as the image is displayed"


class Pair(NamedTuple):
    """An image and its labels, both as they are displayed.

    Attributes:
        image: in RGB.
        labels: `(H, W)` uint8, of the image's full size, even if the image had to be reduced.
        fit: how the mask fits the image.
    """

    image: Image.Image
    labels: Tensor
    fit: Fit


def read_pair(image: Path, mask: Path, num_classes: int, meanings: Meanings | None = None) -> Pair:
    """Reads an image with its mask; see `read_labels`.

    Raises:
        UnreadableImageError: the image cannot be decoded.
        ValueError: the mask cannot belong to this image; names the file.
    """
    picture = read_picture(image)
    labels = read_labels(mask, num_classes, meanings)
    size = labels.shape[::-1]
    stored = picture.size[::-1] if swaps_sides(picture.orientation) else picture.size
    if size == picture.size:
        either = picture.orientation > 1 and size == stored
        return Pair(picture.image, labels, Fit.EITHER if either else Fit.DISPLAYED)
    if size == stored:
        values = turned(Image.fromarray(labels.numpy()), picture.orientation)
        return Pair(picture.image, torch.from_numpy(np.array(values)), Fit.STORED)
    raise ValueError(
        f"{mask} is {size[0]} x {size[1]} px, its image {image.name} {picture.size[0]} x "
        f"{picture.size[1]}: they do not belong together."
    )
