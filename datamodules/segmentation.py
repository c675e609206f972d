"""Segmentation data: crops for training, whole images for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from datamodules.base import ImageDataModule
from datamodules.digests import file_facts
from datamodules.feature_cache import Encode, FeatureCache
from datamodules.listing import parted
from datamodules.loading import BatchLoader, Loading
from datamodules.masked_images import FixedViewsOf, Images, MaskedImages, Prepare, collate
from datamodules.masks.check import Census, check_masks, warn_of_unseen
from datamodules.masks.reading import FilePair
from datamodules.reading import ImageItem
from datamodules.sources import MaskedSource
from datamodules.transforms.segmentation import FixedViews, Protocol, TrainingCrop


class SegmentationDataModule(ImageDataModule):
    """Training images, a part of them held out to make choices, and the test images.

    The data set's own `val` split is the test set, which is never used to choose anything. A hash
    of the names takes the held-out images from the training images, unless the data set says which.

    Args:
        source: the data set.
        protocol: how images are evaluated.
        image_size: side of the training crops in pixels.
        loading: batches, workers, seed.
        val_fraction: share of the training images that is held out.
        fixed_views: the views to train on; None: random crops.
        test_protocol: `protocol` with another size for the test images; None: the same.
    """

    source: MaskedSource

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
        self.caches_test = False
        self.censuses: dict[str, Census] = {}  # both by the name of the images in messages
        self._pairs: dict[str, list[FilePair]] = {}

    def list_images(self, stage: str) -> None:
        """Lists the images; for a test the test images only."""
        if stage != "test":
            self._setup_training()
        test = self._pairs["test images"] = self.pairs("val")
        self.test_set: Images = self._images(test, self.test_protocol, self.loading.seed)
        if self.caches_test:
            self.test_set = self._cached(
                self.test_set, test, {"view": self.image_size}, "test images"
            )

    def check_masks(self, cache: Path) -> None:
        """See `ImageDataModule.check_masks`; also prints the shares of the classes."""
        judged = {*self.val_files, *(image for image, _ in self._pairs["test images"])}
        for what, pairs in self._pairs.items():
            self.censuses[what] = check_masks(
                self.source,
                pairs,
                what,
                judged=judged,
                cache=cache,
                threads=max(1, self.loading.num_workers),
            )
        if "training images" in self.censuses:  # --evaluate looks at the test images alone
            names, learnt = self.source.classes, self.censuses["training images"]
            for what, census in self.censuses.items():
                warn_of_unseen(names, census, learnt, what)

    @property
    def class_pixels(self) -> tuple[int, ...]:
        """Number of pixels of each class, as `check_masks` counted.

        In all images of the split, including those that a hash holds out to choose a checkpoint.
        """
        return self.censuses["training images"].pixels[: self.num_classes]

    def _setup_training(self) -> None:
        pairs = self._pairs["training images"] = self.pairs(self.source.split)
        apart = self.source.held_out()
        if apart is None:
            train, val = parted(pairs, lambda pair: pair[0].stem, self.val_fraction)
        else:
            train, val = pairs, apart
            self._pairs["held-out images"] = apart
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
            # Not the run's seed, so that runs of all seeds share the views and their features.
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
            "meanings": None if self.meanings is None else self.meanings.facts,
            "files": file_facts([file for pair in pairs for file in pair]),
        }
        return self.cache.of(images, facts, name)

    def cache_features(self, root: Path, facts: dict[str, Any], encode: Encode, test: bool) -> None:
        """Reads images and their features from caches from now on; builds missing caches.

        Args:
            root: folder of all caches.
            facts: what determines the features besides the images.
            encode: computes them.
            test: whether to cache test images too: they are seen whole and in one view.

        Raises:
            ValueError: the folder cannot be written, or the disk is full.
        """
        self.cache = FeatureCache(root, facts, encode, self.loading)
        self.caches_test = test
        self.list_images("fit")
        # Reads are memory-mapped: sending tensors between processes would take longer.
        self.loading = replace(self.loading, num_workers=0)

    def whole_training_images(self) -> BatchLoader:
        """The training images without the held-out ones, each once and whole, as in a test."""
        chosen = set(self.train_files)
        pairs = [pair for pair in self._pairs["training images"] if pair[0] in chosen]
        images = self._images(pairs, self.protocol, self.loading.seed, skip_unreadable=True)
        return self.loading.every(images, collate)

    @property
    def judged_files(self) -> Sequence[ImageItem]:
        """The test images; a training list must not contain any of them."""
        return [image for image, _ in self._pairs["test images"]]

    def train_dataloader(self) -> BatchLoader:
        """Shuffled full batches of crops, continuing where the trainer stands."""
        return self.loading.loader(
            self.train_set,
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
