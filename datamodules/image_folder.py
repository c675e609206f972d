"""Any folder of images, labelled or not."""

from __future__ import annotations

import hashlib
from pathlib import Path

from datamodules.base import ImageDataModule, image_files
from datamodules.loading import Loading, Views


class ImageFolderDataModule(ImageDataModule):
    """Images at any depth below `root`.

    With `root/train` and `root/val` these are the splits. Otherwise `val_fraction` of the images is
    held out by a hash of the file name, so that adding images never moves one between the splits.
    """

    def __init__(
        self,
        root: str,
        views: Views,
        image_size: int,
        loading: Loading,
        split: str = "train",
        val_fraction: float = 0.1,
    ) -> None:
        super().__init__(views, image_size, loading, split)
        self.root = Path(root).expanduser()
        self.val_fraction = val_fraction

    def files(self, split: str) -> list[Path]:
        """See `ImageDataModule.files`."""
        if split == "all":
            return image_files(self.root)
        if (self.root / "train").is_dir() and (self.root / "val").is_dir():
            return image_files(self.root / ("val" if split == "val" else "train"))
        return [file for file in image_files(self.root) if self._held_out(file) == (split == "val")]

    def _held_out(self, file: Path) -> bool:
        name = file.relative_to(self.root).as_posix().encode()
        return int.from_bytes(hashlib.sha256(name).digest()[:4]) < self.val_fraction * 2**32
