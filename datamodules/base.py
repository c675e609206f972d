"""What every data set offers to the trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path

import torch
import torchvision.transforms.v2.functional as F
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torchvision.transforms import InterpolationMode

from datamodules.loading import UNREADABLE, BatchLoader, ImageFiles, Loading, Views, read_rgb

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


class ImageDataModule(LightningDataModule, ABC):
    """Images for self-supervised training, and other images of the same kind for validation.

    Args:
        views: from an image to its views.
        image_size: side of the pictures `examples` gives, in pixels.
        loading: batches, workers, seed.
        split: `train`, `all_minus_val` or `all`.
    """

    def __init__(
        self, views: Views, image_size: int, loading: Loading, split: str = "train"
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.views = views
        self.loading = loading
        self.split = split

    @abstractmethod
    def files(self, split: str) -> list[Path]:
        """Returns the images of `train`, `all_minus_val`, `all` or `val`.

        Raises:
            FileNotFoundError: the data is not where it should be; says what to do.
        """

    @property
    def transductive(self) -> bool:
        """Whether training sees images that evaluation uses."""
        return bool(set(self.files(self.split)) & set(self.files("val")))

    def setup(self, stage: str) -> None:
        """Lists the images."""
        seed = self.loading.seed
        self.train_set = ImageFiles(self.files(self.split), self.views, seed)
        self.val_set = ImageFiles(self.files("val"), self.views, seed)

    def train_dataloader(self) -> BatchLoader:
        """Shuffled full batches, continuing where the trainer stands."""
        return self.loading.loader(self.train_set, shuffle=True, first_batch=self._batches_done)

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """The same views of the same images every time, so that the loss is comparable."""
        if len(self.val_set) < 2:
            return []
        size = min(self.loading.batch_size, len(self.val_set))
        chunk = self.loading.chunk_size
        loading = replace(
            self.loading, batch_size=size, chunk_size=min(chunk, size) if chunk else None
        )
        return loading.loader(self.val_set, shuffle=False)

    def examples(self, split: str, count: int, size: int | None = None) -> Tensor:
        """Returns images as they are: shorter side resized, centre cropped.

        Args:
            split: `train` or `val`.
            count: how many, evenly spaced over the set, the same ones every time.
            size: side in pixels; None: that of the training crops.

        Returns:
            `(count, 3, size, size)` uint8; fewer when the set is smaller or files are unreadable.
        """
        files = (self.train_set if split == "train" else self.val_set).files
        picked = [files[i * len(files) // count] for i in range(min(count, len(files)))]
        images = [read_square(file, size or self.image_size) for file in picked]
        return torch.stack([image for image in images if image is not None])

    def _batches_done(self) -> int:
        return self.trainer.fit_loop.epoch_loop.total_batch_idx + 1 if self.trainer else 0


def read_square(file: Path, size: int) -> Tensor | None:
    """Reads an image as `(3, size, size)` uint8: shorter side resized, centre cropped.

    Returns:
        None when the file cannot be read; the loaders name such files.
    """
    try:
        image = read_rgb(file)
    except UNREADABLE:
        return None
    image = F.center_crop(F.resize(image, [size], InterpolationMode.BICUBIC), [size])
    return F.pil_to_tensor(image)


def image_files(folder: Path) -> list[Path]:
    """Lists the images below a folder, sorted by path.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}. Set --data.root.")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise FileNotFoundError(
            f"There is no image below {folder} (looked for {', '.join(sorted(IMAGE_SUFFIXES))})."
        )
    return files
