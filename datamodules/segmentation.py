"""Segmentation data: crops to train on, whole images to judge by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from datamodules.base import ImageDataModule
from datamodules.feature_cache import Encode, FeatureCache, file_facts
from datamodules.fixed_views import FixedViewsOf, Images
from datamodules.listing import held_out
from datamodules.loading import BatchLoader, Loading
from datamodules.mask_check import Census, check_masks, warn_of_unseen
from datamodules.masked_images import LabelledSample, MaskedImages, Prepare, collate
from datamodules.masks import FilePair
from datamodules.reading import ImageItem
from datamodules.sources import MaskedSource
from datamodules.transforms.segmentation import FixedViews, Protocol, TrainingCrop


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
        self.censuses: dict[str, Census] = {}  # as are pairs
        self._pairs: dict[str, list[FilePair]] = {}  # by what to call the images

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
        """See `ImageDataModule.check_masks`; says what the masks hold."""
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
        """How many pixels each class has, as `check_masks` found.

        Of all images of the split: those set apart by a hash to choose a checkpoint are among them.
        """
        return self.censuses["training images"].pixels[: self.num_classes]

    def _setup_training(self) -> None:
        pairs = self._pairs["training images"] = self.pairs(self.source.split)
        apart = self.source.held_out()
        if apart is None:
            parts: tuple[list[FilePair], list[FilePair]] = ([], [])
            for pair in pairs:
                parts[held_out(pair[0].stem, self.val_fraction)].append(pair)
            train, val = parts
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
            "meanings": None if self.meanings is None else self.meanings.facts,
            "files": file_facts([file for pair in pairs for file in pair]),
        }
        return self.cache.of(images, facts, name)

    def cache_features(self, root: Path, facts: dict[str, Any], encode: Encode, test: bool) -> None:
        """Reads images and their features from caches from now on, which are built if need be.

        Args:
            root: folder of all caches.
            facts: what the features follow from, beside the images.
            encode: computes them.
            test: whether test images are seen whole and once, so that theirs can be cached as well.

        Raises:
            ValueError: the folder cannot be written, or there is not enough room.
        """
        self.cache = FeatureCache(root, facts, encode, self.loading, collate, LabelledSample)
        self.caches_test = test
        self.list_images("fit")
        # Reading is memory mapping: handing tensors from process to process would cost more.
        self.loading = replace(self.loading, num_workers=0)

    def whole_training_images(self) -> BatchLoader:
        """The training images but the held-out ones, whole and once, as test images are seen."""
        chosen = set(self.train_files)
        pairs = [pair for pair in self._pairs["training images"] if pair[0] in chosen]
        images = self._images(pairs, self.protocol, self.loading.seed, skip_unreadable=True)
        return self.loading.every(images, collate)

    @property
    def judged_files(self) -> Sequence[ImageItem]:
        """The test images; training lists with some of them are refused."""
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
