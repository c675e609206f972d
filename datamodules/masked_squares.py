"""Training images with masks, cut to squares: for readouts that compare images with each other."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torchvision.transforms.v2.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode

from datamodules.listing import parted
from datamodules.masks.reading import read_pair
from datamodules.memory_cache import MemoryCache
from datamodules.reading import UnreadableImageError
from datamodules.sources import MaskedSource
from utils.spacing import evenly

Square = tuple[Tensor, Tensor]


class MaskedSquares:
    """Images and masks, cut to the centred square; unreadable files are left out.

    The decoded images stay in memory: size² * 3 bytes each, and one byte per pixel of the mask.

    Args:
        source: says what values of masks mean.
        pairs: image and mask files.
        size: side of the images in pixels.

    Attributes:
        decoded: the squares.
    """

    def __init__(self, source: MaskedSource, pairs: list[tuple[Path, Path]], size: int) -> None:
        self.source = source
        self.pairs = pairs
        self.size = size
        self.decoded = MemoryCache()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pairs)

    def __iter__(self) -> Iterator[Square]:
        """Yields images `(3, size, size)` and labels as stored, `(s, s)`, both uint8.

        Raises:
            ValueError: the mask cannot belong to this image; names the file.
        """
        for position in range(len(self.pairs)):
            square = self.decoded.get(position, partial(self._read, position))
            if square is not None:
                yield square

    def _read(self, position: int) -> Square | None:
        file, mask = self.pairs[position]
        classes, meanings = len(self.source.classes), self.source.meanings
        try:
            image, labels, _ = read_pair(file, mask, classes, meanings)
        except UnreadableImageError:
            return None
        image = F.center_crop(image, [min(image.size)])
        image = F.resize(image, [self.size] * 2, InterpolationMode.BICUBIC)
        # The mask's own side, because an over-large image is read smaller than its mask. Copied,
        # because the crop alone would keep the whole mask in memory.
        labels = F.center_crop(labels[None], [min(labels.shape)])[0].clone()
        return F.pil_to_tensor(image), labels


def masked_squares(
    source: MaskedSource, count: int, fraction: float, size: int
) -> tuple[MaskedSquares, MaskedSquares]:
    """Returns training images with masks, and a share of them held out by a hash of their names.

    Args:
        source: the data set; its `val` images are not used.
        count: number of images in both parts, evenly spaced over the training list.
        fraction: share of the images in the second part.
        size: side in pixels.

    Raises:
        FileNotFoundError: there are no masks.
    """
    pairs = evenly(source.pairs("train"), count)
    parts = parted(pairs, lambda pair: pair[0].stem, fraction)
    first, second = (MaskedSquares(source, part, size) for part in parts)
    return first, second
