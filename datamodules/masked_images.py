"""Images with their masks, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.masks.meanings import Meanings
from datamodules.masks.reading import FilePair, read_pair
from datamodules.reading import UnreadableImageError
from datamodules.seeding import Draw, seeded
from utils.device import moved
from utils.palette import VOID

Pair = tuple[Tensor, Tensor]  # image (3, h, w) uint8, labels (H, W) uint8
Prepare = Callable[[Image.Image, Tensor], Pair]


class LabelledSample(NamedTuple):
    """An image `(3, h, w)`, its labels `(H, W)`, its position, and the unreadable files skipped.

    If it comes from a cache, also its features.
    """

    image: Tensor
    labels: Tensor
    position: int
    unreadable: tuple[str, ...]
    stored: dict[str, Tensor] | None = None


@dataclass  # not frozen: Lightning rebuilds batches to move them
class SegmentationBatch:
    """B images of any sizes, padded at the right and bottom to a common one.

    Attributes:
        images: `(B, 3, h, w)` uint8.
        labels: `(B, H, W)` uint8, void in the padding; as large as the images in training, as the
            masks that count in evaluation.
        sizes: `(B, 4)`: height and width of each image, then of its labels.
        indices: `(B,)` positions in the data set.
        unreadable: names of files that were skipped.
        stored: features of each image, if they come from a cache; else empty.
    """

    images: Tensor
    labels: Tensor
    sizes: Tensor
    indices: Tensor
    unreadable: tuple[str, ...]
    stored: tuple[dict[str, Tensor], ...] = ()

    def __len__(self) -> int:
        """B."""
        return len(self.indices)

    def pin_memory(self) -> SegmentationBatch:
        """Called by the loader, so that copies to the GPU do not wait."""
        stored = tuple({name: t.pin_memory() for name, t in each.items()} for each in self.stored)
        images, labels = self.images.pin_memory(), self.labels.pin_memory()
        return replace(self, images=images, labels=labels, stored=stored)

    def to(self, device: torch.device) -> SegmentationBatch:
        """Moves images, labels and features; the numbers that only the host reads stay there."""
        stored = tuple(
            {name: moved(t, device) if t.is_floating_point() else t for name, t in each.items()}
            for each in self.stored
        )
        images, labels = moved(self.images, device), moved(self.labels, device)
        return replace(self, images=images, labels=labels, stored=stored)

    def items(self) -> Iterator[Pair]:
        """Yields every image and its labels at their own size."""
        for image, labels, (h, w, height, width) in zip(
            self.images, self.labels, self.sizes.tolist(), strict=True
        ):
            yield image[:, :h, :w], labels[:height, :width]

    def previews(self, count: int) -> dict[str, Tensor]:
        """Returns copies of the first images `(n, 3, h, w)` and their labels `(n, H, W)`, uint8."""
        return {"image": self.images[:count].clone(), "labels": self.labels[:count].clone()}


class MaskedImages(Dataset[LabelledSample]):
    """Images with their masks.

    Args:
        pairs: image and mask files.
        prepare: turns an image in RGB and its stored labels into a pair to load.
        num_classes: labels are 0 … num_classes - 1, and 255 void.
        meanings: see `MaskedSource.meanings`.
        seed: makes random preparations a function of (seed, epoch, index).
        skip_unreadable: replace an unreadable image by the next one, and report it; otherwise it is
            an error, because an evaluation needs every image.
    """

    def __init__(
        self,
        pairs: Sequence[FilePair],
        prepare: Prepare,
        num_classes: int,
        meanings: Meanings | None,
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
            ValueError: the mask cannot belong to this image; names the file.
        """
        epoch, index = draw
        unreadable: list[str] = []
        for offset in range(len(self.pairs)):
            position = (index + offset) % len(self.pairs)
            file, mask = self.pairs[position]
            try:
                image, labels, _ = read_pair(file, mask, self.num_classes, self.meanings)
            except UnreadableImageError as error:
                unreadable.append(str(error))
                if self.skip_unreadable:
                    continue
                raise ValueError(
                    f"{error} cannot be read, and an evaluation needs every image."
                ) from error
            with seeded(self.seed, epoch, index):
                return LabelledSample(*self.prepare(image, labels), position, tuple(unreadable))
        raise ValueError(f"No image can be read, the first: {unreadable[0]}.")


class Images(Protocol):
    """Images indexed by draws."""

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, draw: Draw) -> LabelledSample:
        """Gives image `index` as seen in `epoch`."""
        ...


class FixedViewsOf(Dataset[LabelledSample]):
    """Images of which every epoch sees one fixed view each.

    Args:
        views: data sets of the same images, one for each view, indexed by draws of epoch 0.
        seed: makes the chosen view a function of (seed, epoch, index).
    """

    def __init__(self, views: Sequence[Images], seed: int) -> None:
        self.views = list(views)
        self.seed = seed

    def __len__(self) -> int:
        """Number of images."""
        return len(self.views[0])

    def __getitem__(self, draw: Draw) -> LabelledSample:
        """Gives image `index` as seen in `epoch`."""
        epoch, index = draw
        with seeded(self.seed, epoch, index):
            number = int(torch.randint(len(self.views), ()))
        return self.views[number][0, index]


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
        tuple(sample.stored for sample in samples if sample.stored is not None),
    )
