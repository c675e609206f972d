"""Images with one class each: for probes, and for pictures coloured by class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from datamodules.base import read_square
from datamodules.listing import parted
from datamodules.reading import ImageItem
from datamodules.sources import LabelledSource
from utils.spacing import evenly


@dataclass(frozen=True)
class LabelledFiles:
    """Images and the class of each.

    Attributes:
        files: the images.
        labels: position of each image's class in `classes`.
        classes: names.
    """

    files: tuple[ImageItem, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def take(self, positions: Sequence[int]) -> LabelledFiles:
        """Returns the images at these positions."""
        return replace(
            self,
            files=tuple(self.files[i] for i in positions),
            labels=tuple(self.labels[i] for i in positions),
        )

    def parted(self, fraction: float) -> tuple[LabelledFiles, LabelledFiles]:
        """Splits by a hash of the names, into the rest and the held-out fraction."""
        rest, chosen = parted(range(len(self)), lambda i: name_of(self.files[i]), fraction)
        return self.take(rest), self.take(chosen)

    def evenly(self, count: int) -> LabelledFiles:
        """Returns at most `count` images, evenly spaced over the set."""
        return self.take(evenly(range(len(self)), count))

    def read(
        self, size: int, read: Callable[[ImageItem, int], Tensor | None] = read_square
    ) -> tuple[Tensor, Tensor]:
        """Returns the images, `(N, 3, size, size)` uint8, and their labels `(N,)`.

        Args:
            size: side in pixels.
            read: reads one image; files for which it returns None are left out.
        """
        images, labels = [torch.empty(0, 3, size, size, dtype=torch.uint8)], []
        for file, label in zip(self.files, self.labels, strict=True):
            image = read(file, size)
            if image is not None:
                images.append(image[None])
                labels.append(label)
        return torch.cat(images), torch.tensor(labels, dtype=torch.long)


def name_of(item: ImageItem) -> str:
    """Returns folder and file name, which stay the same when the data set moves."""
    return "/".join(item.parts[-2:]) if isinstance(item, Path) else str(item)


def labelled_files(source: LabelledSource, split: str) -> LabelledFiles:
    """Lists a split with its labels.

    Raises:
        FileNotFoundError: the data is missing.
        ValueError: the images have no labels.
    """
    classes, labels = source.labels(split)
    return LabelledFiles(tuple(source.files(split)), tuple(labels), classes)
