"""Images without labels, as views of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from datamodules.base import ImageDataModule
from datamodules.image_files import ImageFiles
from datamodules.labelled import LabelledFiles, labelled_files
from datamodules.loading import BatchLoader, Loading
from datamodules.reading import ImageItem, shorter_side
from datamodules.sources import ImageSource, LabelledSource
from datamodules.transforms.augmentations import Views
from utils.distributed import num_processes
from utils.spacing import evenly

_LOOKED_AT = 16  # images whose size is compared with the views'


class ViewsDataModule(ImageDataModule):
    """Views of the training images, and of the validation images.

    Args:
        source: the data set.
        views: draws the views of an image.
        image_size: side of the views in pixels.
        loading: batches, workers, seed.
    """

    def __init__(
        self,
        source: ImageSource,
        views: Views,
        image_size: int,
        loading: Loading,
    ) -> None:
        super().__init__(source, image_size, loading)
        self.views = views
        self._labelled_elsewhere: LabelledFiles | None = None

    def use_labels_of(self, source: LabelledSource) -> None:
        """Takes the labelled images for readouts from another data set, and lists them.

        Raises:
            FileNotFoundError, ValueError: they are missing, or have no labels.
        """
        self._labelled_elsewhere = labelled_files(source, "train")

    def list_images(self, stage: str) -> None:
        """Lists the images, and warns if they are smaller than the views."""
        self.train_files = self.source.files(self.source.split)
        self.val_files = self.source.files("val")
        seed = self.loading.seed
        self.train_set = ImageFiles(self.train_files, self.views, seed)
        self.val_set = ImageFiles(self.val_files, self.views, seed)
        self._check_sizes()

    def _check_sizes(self) -> None:
        picked = evenly(self.train_files, _LOOKED_AT)
        sides = [side for file in picked if (side := shorter_side(file)) is not None]
        if sides and max(sides) < self.image_size:
            rank_zero_warn(
                f"The images are small: {min(sides)} to {max(sides)} px in {len(sides)} examples, "
                f"fewer than --data.image_size {self.image_size}. Crops are enlarged, which costs "
                "time and shows nothing new; 32 suits CIFAR-10."
            )

    @cached_property
    def labelled(self) -> LabelledFiles | None:
        """Labelled training images, listed on first use; None without labels.

        Images of a single class, such as photographs in one folder, count as unlabelled: any
        features are perfect on them.
        """
        elsewhere = self._labelled_elsewhere
        found = self._own_labels() if elsewhere is None else elsewhere
        return found if found is not None and len(found.classes) > 1 else None

    def _own_labels(self) -> LabelledFiles | None:
        if not isinstance(self.source, LabelledSource):
            return None
        try:
            return labelled_files(self.source, "train")
        except ValueError:  # a folder of images may have classes or not
            return None

    def labelled_examples(
        self, count: int, held_out: float
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]] | None:
        """See `ImageDataModule.labelled_examples`."""
        if self.labelled is None:
            return None
        parts = self.labelled.evenly(count).parted(held_out)
        first, second = (part.read(self.image_size, self.square) for part in parts)
        return first, second, self.labelled.classes

    @property
    def validates(self) -> bool:
        """Whether every process gets the two images that a correlation needs."""
        return len(self.val_files) >= 2 * num_processes()

    @property
    def judged_files(self) -> Sequence[ImageItem]:
        """The validation images."""
        return self.val_files

    def train_dataloader(self) -> BatchLoader:
        """Shuffled full batches, continuing where the trainer stands."""
        return self.loading.loader(self.train_set, first_batch=self._batches_done)

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """The same views of the same images every time, so that the loss is comparable.

        Batches are shuffled, as in training.
        """
        if not self.validates:
            return []
        size = min(self.loading.check(len(self.train_set)), len(self.val_set))
        size -= size % num_processes()
        chunk = self.loading.chunk_size
        loading = replace(
            self.loading,
            batch_size=size,
            chunk_size=min(chunk, size) if chunk else None,
            limit_train_batches=None,
        )
        return loading.loader(self.val_set)
