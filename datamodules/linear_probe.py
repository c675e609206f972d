"""Labelled images for a probe: read once, then referred to by position."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import NamedTuple, NoReturn

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import ImageDataModule, square_of
from datamodules.labelled import LabelledFiles, labelled_files
from datamodules.loading import BatchLoader, Loading
from datamodules.reading import ImageItem, UnreadableImageError
from datamodules.seeding import Draw, seeded
from datamodules.sources import LabelledSource
from utils.text import count

_SHOWN = 20  # names of images that cannot be read


class Square(NamedTuple):
    """An image `(3, S, S)` uint8 and its position; if unreadable, a black one and the reason."""

    image: Tensor
    position: int
    problem: str = ""


class Squares(Dataset[Square]):
    """Images as they are: shorter side resized, centre cropped.

    Args:
        files: the images.
        size: S in pixels.
    """

    def __init__(self, files: Sequence[ImageItem], size: int) -> None:
        self.files = files
        self.size = size

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def __getitem__(self, draw: Draw) -> Square:
        """Reads an image."""
        _, index = draw
        try:
            return Square(square_of(self.files[index], self.size), index)
        except UnreadableImageError as error:
            black = torch.zeros(3, self.size, self.size, dtype=torch.uint8)
            return Square(black, index, str(error))


def collate_squares(squares: Sequence[Square]) -> tuple[Tensor, Tensor, list[str]]:
    """Stacks images `(B, 3, S, S)` and positions `(B,)`, and lists the unreadable ones."""
    images, positions, problems = zip(*squares, strict=True)
    return torch.stack(images), torch.tensor(positions), list(filter(None, problems))


@dataclass  # not frozen: Lightning rebuilds batches to move them
class ProbeBatch:
    """Refers to images by position: their features have been computed already.

    Attributes:
        indices: positions in the split, `(B,)`.
        labels: `(B,)`.
        mirrored: 1 for the mirror image, else 0, `(B,)`.
        unreadable: always empty; other batches list skipped files here.
    """

    indices: Tensor
    labels: Tensor
    mirrored: Tensor
    unreadable: tuple[str, ...] = ()

    def __len__(self) -> int:
        """B."""
        return len(self.indices)


class _Draws(Dataset[Draw]):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, draw: Draw) -> Draw:
        return draw


def _probe_batch(draws: Sequence[Draw], labels: Tensor, seed: int | None) -> ProbeBatch:
    indices = torch.tensor([index for _, index in draws])
    mirrored = torch.zeros_like(indices)
    if seed is not None:
        for position, draw in enumerate(draws):
            with seeded(seed, *draw):
                mirrored[position] = torch.randint(2, ())
    return ProbeBatch(indices, labels[indices], mirrored)


class LabelledDataModule(ImageDataModule):
    """Training images, a part of them held out to make choices, and the test images.

    The test set is the data set's `test` split, and `val` is held out; without `test`, it is `val`.
    The test set is never used to choose anything. `images` reads every image once; the other
    loaders only say which images make a batch.

    Args:
        source: the data set.
        image_size: side of the images in pixels.
        loading: batches, workers, seed.
        val_fraction: share of the training images to hold out, if no split is for that.
        most: at most so many images of each split, evenly spaced; None: all.

    Attributes:
        splits: `train`, `val` (held out) and `test`.
    """

    source: LabelledSource

    def __init__(
        self,
        source: LabelledSource,
        image_size: int,
        loading: Loading,
        val_fraction: float,
        most: int | None = None,
    ) -> None:
        super().__init__(source, image_size, loading)
        self.val_fraction = val_fraction
        self.most = most
        self.splits: dict[str, LabelledFiles] = {}

    def list_images(self, stage: str) -> None:
        """Lists the images.

        Raises:
            ValueError: training and test images do not have the same classes, or there is no test
                image.
        """
        # Three names only if `val` is a split of its own to make choices on.
        splits = dict.fromkeys((self.source.split, self.source.judged_split, "val"))
        train, test, *val = (labelled_files(self.source, split) for split in splits)
        if train.classes != test.classes:
            ours, theirs = map(self.source.place_of, [*splits][:2])
            both = set(train.classes) & set(test.classes)
            alone = [
                ", ".join([name for name in part.classes if name not in both][:6]) or "none"
                for part in (train, test)
            ]
            raise ValueError(
                f"{ours} and {theirs} have different classes ({len(train.classes)} and "
                f"{len(test.classes)}). In the first only: {alone[0]}; in the second: {alone[1]}."
            )
        if not len(test):
            raise ValueError(
                f"None of {count(len(train), 'image')} is left for the test: add a val/ folder, or "
                "raise --data.val_fraction."
            )
        if unseen := sorted(set(range(len(train.classes))) - set(train.labels)):
            every = count(len(train.classes), "class")
            rank_zero_warn(
                f"{len(unseen)} of {every} without a training image, such as "
                f"{train.classes[unseen[0]]}: a linear classifier cannot learn what it never saw."
            )
        if self.most is not None:
            train, test, *val = (part.evenly(self.most) for part in (train, test, *val))
        train, chosen_by = (train, *val) if val else train.parted(self.val_fraction)
        self.splits = {"train": train, "val": chosen_by, "test": test}
        self.train_files, self.val_files = train.files, chosen_by.files

    @property
    def judged_files(self) -> Sequence[ImageItem]:
        """The test images."""
        return self.splits["test"].files

    def images(self, split: str) -> BatchLoader:
        """Every image of a split once, in batches made by `collate_squares`."""
        return self.loading.every(
            Squares(self.splits[split].files, self.image_size), collate_squares
        )

    def refuse_unreadable(self) -> NoReturn:
        """Reports all unreadable images, once a first one has been found.

        Raises:
            ValueError: a probe needs every image.
        """
        files = [file for split in self.splits.values() for file in split.files]
        squares = Squares(files, self.image_size)
        with ThreadPoolExecutor(max(1, self.loading.num_workers)) as pool:
            found = pool.map(lambda index: squares[(0, index)].problem, range(len(files)))
            problems = list(filter(None, found))
        shown = " | ".join(problems[:_SHOWN]) + (" | …" if len(problems) > _SHOWN else "")
        raise ValueError(
            f"{len(problems)} of {count(len(files), 'image')} cannot be read, and a probe needs "
            f"every one: repair or remove them. {shown}"
        )

    def train_dataloader(self) -> BatchLoader:
        """Shuffled full batches, half of the images mirrored, continuing where the trainer is."""
        train = self.splits["train"]
        return replace(self.loading, num_workers=0).loader(
            _Draws(len(train)),
            first_batch=self._batches_done,
            collate=partial(
                _probe_batch, labels=torch.tensor(train.labels), seed=self.loading.seed
            ),
            join=itemgetter(0),
        )

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """The images that choices are made on."""
        return self._in_order("val") if len(self.splits["val"]) else []

    def test_dataloader(self) -> BatchLoader:
        """The test images."""
        return self._in_order("test")

    def _in_order(self, split: str) -> BatchLoader:
        files = self.splits[split]
        collate = partial(_probe_batch, labels=torch.tensor(files.labels), seed=None)
        return replace(self.loading, num_workers=0).every(_Draws(len(files)), collate)
