"""Any folder of images, labelled or not."""

from __future__ import annotations

from pathlib import Path

from datamodules.base import LabelledSource
from datamodules.listing import held_out, image_files
from utils.text import printable


class ImageFolder(LabelledSource):
    """Images at any depth below `root`; those of a class share a folder, if they have classes.

    With `root/train` and `root/val` these are the splits. Otherwise `val_fraction` of the images is
    held out by a hash of the file name.
    """

    def __init__(self, root: str, split: str = "train", val_fraction: float = 0.1) -> None:
        super().__init__(root, split)
        self.val_fraction = val_fraction
        self._listed: dict[Path, list[Path]] = {}  # a tree is walked once

    def files(self, split: str) -> list[Path]:
        """See `ImageSource.files`; also `all` and, the same as `train`, `all_minus_val`."""
        if split not in ("train", "all_minus_val", "all", "val"):
            raise ValueError(f"--data.split {split}: a folder of images has no such split.")
        if split == "all":
            return self._below(self.root)
        if self._has_splits():
            return self._below(self._folder(split))
        return [file for file in self._below(self.root) if self._held_out(file) == (split == "val")]

    def labels(self, split: str) -> tuple[tuple[str, ...], list[int]]:
        """See `LabelledSource.labels`: the folder right below `root`, `train` or `val`."""
        if split == "all" and self._has_splits():
            raise ValueError("--data.split all: with train/ and val/ folders, labels need a split.")
        folder = self._folder(split)
        inside = [file.relative_to(folder).parts for file in self.files(split)]
        if loose := [parts[0] for parts in inside if len(parts) == 1]:
            raise ValueError(
                f"The images below {folder} have no labels: {loose[0]} lies in no folder of a "
                f"class. Expected {folder}/CLASS/IMAGE."
            )
        classes = tuple(sorted({parts[0] for parts in inside}))
        number = {name: index for index, name in enumerate(classes)}
        return tuple(map(printable, classes)), [number[parts[0]] for parts in inside]

    def _below(self, folder: Path) -> list[Path]:
        if folder not in self._listed:
            self._listed[folder] = image_files(folder)
        return self._listed[folder]

    def _has_splits(self) -> bool:
        return (self.root / "train").is_dir() and (self.root / "val").is_dir()

    def _folder(self, split: str) -> Path:
        if not self._has_splits():
            return self.root
        return self.root / ("val" if split == "val" else "train")

    def _held_out(self, file: Path) -> bool:
        return held_out(file.relative_to(self.root).as_posix(), self.val_fraction)
