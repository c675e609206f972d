"""Images with masks: crops to train on, whole images to judge by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import ImageDataModule, MaskedSource, held_out
from datamodules.loading import UNREADABLE, BatchLoader, Loading, read_rgb
from datamodules.seeding import Draw, seeded
from datamodules.transforms.segmentation import Protocol, TrainingCrop
from utils.palette import VOID, coloured

Pair = tuple[Tensor, Tensor]  # image (3, h, w) uint8, labels (H, W) uint8
FilePair = tuple[Path, Path]  # image, mask
Prepare = Callable[[Image.Image, Tensor], Pair]


class LabelledSample(NamedTuple):
    """An image `(3, h, w)`, its labels `(H, W)`, its position, and files skipped to get at it."""

    image: Tensor
    labels: Tensor
    position: int
    unreadable: tuple[str, ...]


@dataclass  # not frozen: Lightning rebuilds batches to move them
class SegmentationBatch:
    """B images of any sizes, padded at the right and bottom to a common one.

    Attributes:
        images: `(B, 3, h, w)` uint8.
        labels: `(B, H, W)` uint8, void where there is no image; of the images' size in training,
            of the size that is judged in evaluation.
        sizes: `(B, 4)`: height and width of each image, then of its labels.
        indices: `(B,)` positions in the data set.
        unreadable: names of files that were skipped.
    """

    images: Tensor
    labels: Tensor
    sizes: Tensor
    indices: Tensor
    unreadable: tuple[str, ...]

    def __len__(self) -> int:
        """B."""
        return len(self.indices)

    def pin_memory(self) -> SegmentationBatch:
        """Called by the loader, so that copies to the GPU do not wait."""
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())

    def items(self) -> Iterator[Pair]:
        """Yields every image and its labels at their own size."""
        for image, labels, (h, w, height, width) in zip(
            self.images, self.labels, self.sizes.tolist(), strict=True
        ):
            yield image[:, :h, :w], labels[:height, :width]

    def previews(self, count: int) -> dict[str, Tensor]:
        """Returns the first images and their labels in colour, `(n, 3, h, w)` uint8 each."""
        colours = torch.from_numpy(coloured(self.labels[:count].cpu().numpy()))
        return {"image": self.images[:count], "labels": colours.permute(0, 3, 1, 2)}


class MaskedImages(Dataset[LabelledSample]):
    """Images with their masks.

    Args:
        pairs: image and mask files.
        prepare: from the image in RGB and its labels as stored to what is loaded.
        num_classes: labels are 0 … num_classes - 1, and 255 void.
        meanings: see `MaskedSource.meanings`.
        seed: makes random preparations a function of (seed, epoch, index).
        skip_unreadable: replace an image that cannot be read by the next one, and name it; in an
            evaluation every image counts, so there it is an error.
    """

    def __init__(
        self,
        pairs: Sequence[FilePair],
        prepare: Prepare,
        num_classes: int,
        meanings: NDArray[np.uint8] | None,
        seed: int,
        skip_unreadable: bool,
    ) -> None:
        self.pairs = list(pairs)
        self.prepare = prepare
        self.num_classes = num_classes
        self.meanings = meanings
        self.seed = seed
        self.skip_unreadable = skip_unreadable

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pairs)

    def __getitem__(self, draw: Draw) -> LabelledSample:
        """Reads image `index` as seen in `epoch`.

        Raises:
            ValueError: a mask that cannot be one of this image; names the file.
        """
        epoch, index = draw
        unreadable: list[str] = []
        for offset in range(len(self.pairs)):
            position = (index + offset) % len(self.pairs)
            file, mask = self.pairs[position]
            try:
                image = read_rgb(file)
            except UNREADABLE as error:
                unreadable.append(f"{file} ({error})")
                if self.skip_unreadable:
                    continue
                raise ValueError(
                    f"{file} cannot be read ({error}), and an evaluation needs every image."
                ) from error
            labels = read_labels(mask, self.num_classes, self.meanings)
            if labels.shape != (image.height, image.width):
                raise ValueError(
                    f"{mask} is {labels.shape[1]} x {labels.shape[0]} px, its image {file.name} "
                    f"{image.width} x {image.height}: they do not belong together."
                )
            with seeded(self.seed, epoch, index):
                return LabelledSample(*self.prepare(image, labels), position, tuple(unreadable))
        raise ValueError(f"No image can be read, the first: {unreadable[0]}.")


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


def collate(samples: Sequence[LabelledSample]) -> SegmentationBatch:
    """Pads samples to their largest sides: images with black, labels with void."""
    sizes = [(*s.image.shape[-2:], *s.labels.shape) for s in samples]
    h, w, height, width = (max(sides) for sides in zip(*sizes, strict=True))
    images = torch.zeros(len(samples), 3, h, w, dtype=torch.uint8)
    labels = torch.full((len(samples), height, width), VOID, dtype=torch.uint8)
    for position, (sample, (a, b, c, d)) in enumerate(zip(samples, sizes, strict=True)):
        images[position, :, :a, :b] = sample.image
        labels[position, :c, :d] = sample.labels
    return SegmentationBatch(
        images,
        labels,
        torch.tensor(sizes),
        torch.tensor([sample.position for sample in samples]),
        tuple(name for sample in samples for name in sample.unreadable),
    )


class SegmentationDataModule(ImageDataModule):
    """Training images, a part of them held out for choices, and the test images.

    The data set's own `val` split is the test set: it is never used to choose anything. What is
    watched while training is cut from the training images by a hash of their names.

    Args:
        source: the data set.
        protocol: how images are judged.
        image_size: side of the training crops in pixels.
        loading: batches, workers, seed.
        val_fraction: share of the training images that is held out.
    """

    def __init__(
        self,
        source: MaskedSource,
        protocol: Protocol,
        image_size: int,
        loading: Loading,
        val_fraction: float,
    ) -> None:
        super().__init__(source, image_size, loading)
        self.pairs = source.pairs
        self.num_classes = len(source.classes)
        self.meanings = source.meanings
        self.protocol = protocol
        self.val_fraction = val_fraction

    def setup(self, stage: str) -> None:
        """Lists the images; for a test the test images only."""
        if stage != "test":
            self._setup_training()
        self.test_set = self._images(self.pairs("val"), self.protocol)

    def _setup_training(self) -> None:
        parts: tuple[list[FilePair], list[FilePair]] = ([], [])
        for pair in self.pairs(self.source.split):
            parts[held_out(pair[0].stem, self.val_fraction)].append(pair)
        train, val = parts
        self.train_files = [image for image, _ in train]
        self.val_files = [image for image, _ in val]
        crop = TrainingCrop(self.image_size, self.protocol)
        self.train_set = self._images(train, crop, skip_unreadable=True)
        self.val_set = self._images(val, self.protocol)

    def _images(
        self, pairs: Sequence[FilePair], prepare: Prepare, skip_unreadable: bool = False
    ) -> MaskedImages:
        return MaskedImages(
            pairs, prepare, self.num_classes, self.meanings, self.loading.seed, skip_unreadable
        )

    @property
    def transductive(self) -> bool:
        """Never: training lists with test images in them are refused."""
        return False

    def train_dataloader(self) -> BatchLoader:
        """Shuffled full batches of crops, continuing where the trainer stands."""
        return self.loading.loader(
            self.train_set,
            shuffle=True,
            first_batch=self._batches_done,
            collate=collate,
            join=itemgetter(0),
        )

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """The held-out training images, whole."""
        return self.loading.every(self.val_set, collate) if len(self.val_set) else []

    def test_dataloader(self) -> BatchLoader:
        """The test images, whole."""
        return self.loading.every(self.test_set, collate)
