"""Image files as views, drawn anew for every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.reading import ImageItem, UnreadableImageError, opened
from datamodules.seeding import Draw, seeded
from datamodules.transforms.augmentations import Views

# With so many unreadable files in a row, the folder is wrong, not a file.
_MAX_SKIPS = 25


class Sample(NamedTuple):
    """One image: its views `(3, H, W)` uint8, its position, and the unreadable files skipped."""

    views: tuple[Tensor, ...]
    position: int
    unreadable: tuple[str, ...]


class ImageFiles(Dataset[Sample]):
    """Images as views. An unreadable file is replaced by the next one, and reported.

    Args:
        files: image files.
        views: draws the views of an image.
        seed: makes the views a function of (seed, epoch, index).
    """

    def __init__(self, files: Sequence[ImageItem], views: Views, seed: int) -> None:
        self.files = list(files)
        self.views = views
        self.seed = seed

    def __len__(self) -> int:
        """Number of files."""
        return len(self.files)

    def __getitem__(self, draw: Draw) -> Sample:
        """Reads image `index` as seen in `epoch`.

        Raises:
            ValueError: many files in a row are unreadable.
        """
        epoch, index = draw
        unreadable: list[str] = []
        for offset in range(min(_MAX_SKIPS, len(self.files))):
            position = (index + offset) % len(self.files)
            try:
                with opened(self.files[position]) as file:
                    with seeded(self.seed, epoch, index):
                        drawn = self.views.draw(file.size)
                    picture = file.decode(max(view.scale for view in drawn))
            except UnreadableImageError as error:
                unreadable.append(str(error))
                continue
            pixels = np.asarray(picture.image)
            views = tuple(view.cut(pixels, picture.size) for view in drawn)
            return Sample(views, position, tuple(unreadable))
        raise ValueError(
            f"{len(unreadable)} images in a row cannot be read, the first: {unreadable[0]}. "
            "Is the data set complete, and --data.root right?"
        )
