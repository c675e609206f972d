"""Any folder of images, labelled or not."""

from __future__ import annotations

from pathlib import Path

from datamodules.base import ImageSource, held_out, image_files


class ImageFolder(ImageSource):
    """Images at any depth below `root`.

    With `root/train` and `root/val` these are the splits. Otherwise `val_fraction` of the images is
    held out by a hash of the file name.
    """

    def __init__(self, root: str, split: str = "train", val_fraction: float = 0.1) -> None:
        super().__init__(root, split)
        self.val_fraction = val_fraction

    def files(self, split: str) -> list[Path]:
        """See `ImageSource.files`; also `all` and, the same as `train`, `all_minus_val`."""
        if split not in ("train", "all_minus_val", "all", "val"):
            raise ValueError(f"--data.split {split}: a folder of images has no such split.")
        if split == "all":
            return image_files(self.root)
        if (self.root / "train").is_dir() and (self.root / "val").is_dir():
            return image_files(self.root / ("val" if split == "val" else "train"))
        return [file for file in image_files(self.root) if self._held_out(file) == (split == "val")]

    def _held_out(self, file: Path) -> bool:
        return held_out(file.relative_to(self.root).as_posix(), self.val_fraction)
