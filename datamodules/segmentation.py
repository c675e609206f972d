"""Images with masks: crops to train on, whole images to judge by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import ImageDataModule, MaskedSource
from datamodules.feature_cache import Encode, FeatureCache, file_facts
from datamodules.fixed_views import FixedViewsOf, Images
from datamodules.listing import held_out
from datamodules.loading import BatchLoader, Loading
from datamodules.masks import read_pair
from datamodules.reading import UnreadableImageError
from datamodules.seeding import Draw, seeded
from datamodules.transforms.segmentation import FixedViews, Protocol, TrainingCrop
from utils.palette import VOID

Pair = tuple[Tensor, Tensor]  # image (3, h, w) uint8, labels (H, W) uint8
FilePair = tuple[Path, Path]  # image, mask
Prepare = Callable[[Image.Image, Tensor], Pair]


class LabelledSample(NamedTuple):
    """An image `(3, h, w)`, its labels `(H, W)`, its position, and files skipped to get at it.

    From a cache, also its features.
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
        labels: `(B, H, W)` uint8, void where there is no image; of the images' size in training,
            of the size that is judged in evaluation.
        sizes: `(B, 4)`: height and width of each image, then of its labels.
        indices: `(B,)` positions in the data set.
        unreadable: names of files that were skipped.
        stored: from a cache, features of each image; else empty.
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
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())

    def items(self) -> Iterator[Pair]:
        """Yields every image and its labels at their own size."""
        for image, labels, (h, w, height, width) in zip(
            self.images, self.labels, self.sizes.tolist(), strict=True
        ):
            yield image[:, :h, :w], labels[:height, :width]

    def previews(self, count: int) -> dict[str, Tensor]:
        """Returns the first images `(n, 3, h, w)` and their labels `(n, H, W)`, uint8."""
        return {"image": self.images[:count], "labels": self.labels[:count]}


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
        fixed_views: what is trained on; None: random crops.
        test_protocol: `protocol` for another size of the test images; None: the same.
    """

    def __init__(
        self,
        source: MaskedSource,
        protocol: Protocol,
        image_size: int,
        loading: Loading,
        val_fraction: float,
        fixed_views: FixedViews | None = None,
        test_protocol: Protocol | None = None,
    ) -> None:
        super().__init__(source, image_size, loading)
        self.pairs = source.pairs
        self.num_classes = len(source.classes)
        self.meanings = source.meanings
        self.protocol = protocol
        self.test_protocol = test_protocol or protocol
        self.val_fraction = val_fraction
        self.fixed_views = fixed_views
        self.cache: FeatureCache | None = None
        self.keeps_test = False

    def list_images(self, stage: str) -> None:
        """Lists the images; for a test the test images only."""
        if stage != "test":
            self._setup_training()
        test = self.pairs("val")
        self.test_set: Images = self._images(test, self.test_protocol, self.loading.seed)
        if self.keeps_test:
            self.test_set = self._cached(
                self.test_set, test, {"view": self.image_size}, "test images"
            )

    def _setup_training(self) -> None:
        parts: tuple[list[FilePair], list[FilePair]] = ([], [])
        for pair in self.pairs(self.source.split):
            parts[held_out(pair[0].stem, self.val_fraction)].append(pair)
        train, val = parts
        self.train_files = [image for image, _ in train]
        self.val_files = [image for image, _ in val]
        self.train_set = self._training(train)
        held = self._images(val, self.protocol, self.loading.seed)
        self.val_set = self._cached(held, val, {"view": self.image_size}, "held-out images")

    def _training(self, pairs: Sequence[FilePair]) -> Images:
        if self.fixed_views is None:
            crop = TrainingCrop(self.image_size, self.protocol)
            return self._images(pairs, crop, self.loading.seed, skip_unreadable=True)
        views = [
            # Not the run's seed: the views, and so their features, are the same for all seeds.
            self._cached(
                self._images(pairs, self.fixed_views.view(number), number, skip_unreadable=True),
                pairs,
                {"view": [self.image_size, *self.fixed_views.kinds[number], number]},
                f"view {number + 1} of {len(self.fixed_views)} of the training images",
            )
            for number in range(len(self.fixed_views))
        ]
        return FixedViewsOf(views, self.loading.seed)

    def _images(
        self,
        pairs: Sequence[FilePair],
        prepare: Prepare,
        seed: int,
        skip_unreadable: bool = False,
    ) -> MaskedImages:
        return MaskedImages(pairs, prepare, self.num_classes, self.meanings, seed, skip_unreadable)

    def _cached(
        self, images: Images, pairs: Sequence[FilePair], facts: dict[str, Any], name: str
    ) -> Images:
        if self.cache is None or not len(images):
            return images
        facts |= {
            "protocol": type(self.protocol).__name__,
            "files": file_facts([file for pair in pairs for file in pair]),
        }
        return self.cache.of(images, facts, name)

    def keep(self, root: Path, facts: dict[str, Any], encode: Encode, test: bool) -> None:
        """Reads images and their features from caches from now on, which are built if need be.

        Args:
            root: folder of all caches.
            facts: what the features follow from, beside the images.
            encode: computes them.
            test: whether test images are seen whole and once, so that theirs can be kept as well.

        Raises:
            ValueError: the folder cannot be written, or there is not enough room.
        """
        self.cache = FeatureCache(root, facts, encode, self.loading, collate, LabelledSample)
        self.keeps_test = test
        self.list_images("fit")
        # Reading is memory mapping: handing tensors from process to process would cost more.
        self.loading = replace(self.loading, num_workers=0)

    def whole_training_images(self) -> BatchLoader:
        """The training images but the held-out ones, whole and once, as test images are seen."""
        chosen = set(self.train_files)
        pairs = [pair for pair in self.pairs(self.source.split) if pair[0] in chosen]
        images = self._images(pairs, self.protocol, self.loading.seed, skip_unreadable=True)
        return self.loading.every(images, collate)

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
