"""How a task loads images, whatever the data set: its `ImageSource` says where they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torchvision.transforms.v2.functional as F
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torchvision.transforms import InterpolationMode

from datamodules.first_look import warn_of_darkness, warn_of_several
from datamodules.listing import places
from datamodules.loading import BatchLoader, Loading
from datamodules.masks.reading import read_pair
from datamodules.memory_cache import MemoryCache
from datamodules.reading import ImageItem, UnreadableImageError, opened
from datamodules.sources import ImageSource, MaskedSource
from utils.spacing import evenly


class ImageDataModule(LightningDataModule, ABC):
    """A data set as one task loads it.

    Args:
        source: the data set.
        image_size: side of the training crops, and of the pictures `examples` gives, in pixels.
        loading: batches, workers, seed.
    """

    def __init__(self, source: ImageSource, image_size: int, loading: Loading) -> None:
        super().__init__()
        self.source = source
        self.image_size = image_size
        self.loading = loading
        self.train_files: Sequence[ImageItem] = ()
        self.val_files: Sequence[ImageItem] = ()
        self._listed: set[str] = set()
        self._squares = MemoryCache()

    def prepare_data(self) -> None:
        """Downloads or draws what is missing."""
        self.source.prepare()

    def setup(self, stage: str) -> None:
        """Lists the images, once: Lightning asks again before every fit and test."""
        if not self._listed & {stage, "fit"}:
            self.list_images(stage)
            self._listed.add(stage)

    @abstractmethod
    def list_images(self, stage: str) -> None:
        """Lists the images: sets `train_files` and `val_files`, which do not overlap.

        Args:
            stage: `fit`: lists everything | `validate`, `test`: only what that stage needs.
        """

    def check(self, cache: Path) -> None:
        """Checks that the listed images can be loaded as the settings ask.

        Args:
            cache: folder that keeps the findings for the next run; it may be deleted.

        Raises:
            ValueError: a batch is larger than the data set; see `check_masks`.
        """
        self.loading.check(len(self.train_files))
        self.check_masks(cache)
        warn_of_darkness(self.train_files)
        warn_of_several(self.train_files, "the training images")

    def check_masks(self, cache: Path) -> None:
        """Checks the masks of the listed images, where the task needs them.

        Args:
            cache: see `check`.

        Raises:
            ValueError: some masks cannot be used.
        """

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint records about the data: the number of training images."""
        return {"train_images": len(self.train_files)}

    @abstractmethod
    def train_dataloader(self) -> BatchLoader:
        """Shuffled full batches, continuing where the trainer stands."""

    @property
    def validates(self) -> bool:
        """Whether there are images to validate on."""
        return len(self.val_files) > 0

    @property
    @abstractmethod
    def judged_files(self) -> Sequence[ImageItem]:
        """The images of the evaluation."""

    @property
    def transductive(self) -> bool:
        """Whether training sees images that evaluation uses."""
        return bool(places(self.train_files) & places(self.judged_files))

    def examples(self, split: str, count: int, size: int | None = None) -> Tensor:
        """Returns images as they are: shorter side resized, centre cropped.

        Args:
            split: `train` or `val`.
            count: number of images, evenly spaced over the set, the same ones every time.
            size: side in pixels; None: that of the training crops.

        Returns:
            `(count, 3, size, size)` uint8; fewer when the set is smaller. Files that cannot be read
            are replaced by the next ones.
        """
        files = self.train_files if split == "train" else self.val_files
        side = size or self.image_size
        images: dict[int, Tensor] = {}
        for start in evenly(range(len(files)), count):
            for position in range(start, len(files)):
                image = None if position in images else self.square(files[position], side)
                if image is not None:
                    images[position] = image
                    break
        none = torch.empty(0, 3, side, side, dtype=torch.uint8)
        return torch.stack(list(images.values())) if images else none

    def square(self, file: ImageItem, size: int) -> Tensor | None:
        """Does what `read_square` does, cached: figures show the same images again and again."""
        return self._squares.get((file, size), lambda: read_square(file, size))

    def masked_examples(
        self, split: str, count: int, shorter_side: int, multiple: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images with their masks, whole; none where there are no masks.

        Args:
            split: `train`: training images, held-out ones where there are any | `test`.
            count: number of images, evenly spaced over the set, the same ones every time.
            shorter_side: shorter side of the images in pixels.
            multiple: both sides are rounded to multiples of this.

        Yields:
            `(3, h, w)` uint8 and its labels as stored, `(H, W)` uint8. Images that cannot be read
            are left out.
        """
        if not isinstance(self.source, MaskedSource):
            return
        pairs = self.source.pairs("train" if split == "train" else "val")
        if split == "train":
            pairs = [*pairs, *(self.source.held_out() or ())]
        watched = set(self.val_files) & {image for image, _ in pairs}
        if split == "train" and watched:
            pairs = [pair for pair in pairs if pair[0] in watched]
        for image, mask in evenly(pairs, count):
            try:
                picture, labels, _ = read_pair(
                    image, mask, len(self.source.classes), self.source.meanings
                )
            except UnreadableImageError:
                continue
            scale = shorter_side / min(picture.size)
            sides = (
                max(1, round(side * scale / multiple)) * multiple
                for side in (picture.height, picture.width)
            )
            yield F.pil_to_tensor(F.resize(picture, list(sides))), labels

    def labelled_examples(
        self, count: int, held_out: float
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]] | None:
        """Returns labelled training images as they are, a share of them held out, and the classes.

        Args:
            count: number of images, evenly spaced over the set.
            held_out: share of the images in the second part.

        Returns:
            Images `(N, 3, S, S)` uint8 and labels `(N,)` of both parts; None without labels. Files
            that cannot be read are left out.
        """
        return None

    def _batches_done(self) -> int:
        return self.trainer.fit_loop.epoch_loop.total_batch_idx + 1 if self.trainer else 0


def square_of(file: ImageItem, size: int) -> Tensor:
    """Reads an image as `(3, size, size)` uint8: shorter side resized, centre cropped.

    Raises:
        UnreadableImageError: the file cannot be decoded.
    """
    with opened(file) as found:
        image = found.decode(size / min(found.size)).image
    image = F.center_crop(F.resize(image, [size], InterpolationMode.BICUBIC), [size])
    return F.pil_to_tensor(image)


def read_square(file: ImageItem, size: int) -> Tensor | None:
    """Does what `square_of` does; None for an unreadable file, which the loaders report."""
    try:
        return square_of(file, size)
    except UnreadableImageError:
        return None
