"""Any folder of images, labelled or not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_warn

from datamodules.listing import (
    IMAGE_SUFFIXES,
    TEST,
    TRAIN,
    VAL,
    composed,
    files_below,
    folders_in,
    image_files,
    is_image,
    judging_place,
    part_of,
)
from datamodules.sources import LabelledSource
from utils.text import printable

_NAMED = 5  # classes
# Usual names of folders with masks.
_OF_MASKS = {
    *("mask", "masks", "labels", "stuffthingmaps"),
    *("segmentationclass", "segmentationclassaug", "segmentationobject"),
}
_HELD_OUT = (*VAL, *TEST)  # the first that exists


class ImageFolder(LabelledSource):
    """Images at any depth below `root`; with one folder for each class, if there are classes.

    If there are `root/train` (or `training`) and `root/val` (or `valid`, `validation`, `test`,
    `testing`; upper case too), these are the splits; a `test` beside both is the split `test`.
    Otherwise a hash of the path holds out `val_fraction` of the images, or of `root/train` where
    it is the only folder.
    """

    def __init__(self, root: str, split: str = "train", val_fraction: float = 0.1) -> None:
        super().__init__(root, split)
        self.val_fraction = val_fraction
        self._listed: dict[Path, list[Path]] = {}  # so that each tree is walked once

    def files(self, split: str) -> list[Path]:
        """See `ImageSource.files`; also `test`, `all` and, the same as `train`, `all_minus_val`."""
        train = self._parts["train"]
        places = self._parts | {"all_minus_val": train, "all": self.root}
        if split not in places:
            raise ValueError(f"--data.split {split}: a folder of images has no such split.")
        if train != self._parts["val"]:
            return self._below(places[split])
        files, judged = self._below(train), split == "val"
        if split == "all":
            return files
        return [f for f in files if (judging_place(f, train) < self.val_fraction) == judged]

    @property
    def judged_split(self) -> str:
        """See `LabelledSource.judged_split`: `test`, if it exists and has the same classes."""
        if "test" not in self._parts:
            return "val"
        train, val, test = (self._parts[split] for split in ("train", "val", "test"))
        found = filter(is_image, files_below(test))  # there may be none
        ours = _entries(self._below(train), train)
        if ours == _entries(self._below(val), val) == _entries(found, test):
            return "test"
        rank_zero_warn(
            f"{printable(test)} is left out, and {printable(val)} is the test set: all three parts "
            "need the same folders of classes."
        )
        return "val"

    def place_of(self, split: str) -> str:
        """See `LabelledSource.place_of`."""
        return printable(self._parts.get(split, self.root))

    def labels(self, split: str) -> tuple[tuple[str, ...], list[int]]:
        """See `LabelledSource.labels`: the folder right below `root`, `train` or `val`.

        Where a hash splits the images, the classes are those of all images: all images of a small
        class may fall into one part.
        """
        train = self._parts["train"]
        if split == "all" and train != self._parts["val"]:
            raise ValueError("--data.split all: with train/ and val/ folders, labels need a split.")
        folder = self._parts.get(split, train)
        inside = [file.relative_to(folder).parts for file in self.files(split)]
        if loose := [parts[0] for parts in inside if len(parts) == 1]:
            raise ValueError(
                f"The images below {folder} have no labels: {loose[0]} lies in no folder of a "
                f"class. Expected {folder}/CLASS/IMAGE."
            )
        self._say_what_is_left_out(folder)
        every = [file.relative_to(folder).parts for file in self._below(folder)]
        _say_where_images_lie_deeper(folder, every)
        classes = tuple(sorted({composed(parts[0]) for parts in every if len(parts) > 1}))
        number = {name: index for index, name in enumerate(classes)}
        return tuple(map(printable, classes)), [number[composed(parts[0])] for parts in inside]

    def _say_what_is_left_out(self, folder: Path) -> None:
        held = {file.relative_to(folder).parts[0] for file in self._below(folder)}
        for other in folders_in(folder):
            if other.name not in held and (file := next(files_below(other), None)):
                rank_zero_warn(
                    f"{printable(other)} is left out: it holds files, such as "
                    f"{printable(file.name)}, but no image that is read. Suffixes of images are "
                    f"{', '.join(sorted(IMAGE_SUFFIXES))}."
                )

    def _below(self, folder: Path) -> list[Path]:
        if folder not in self._listed:
            found = self._listed[folder] = image_files(folder)
            first = sorted({file.relative_to(folder).parts[0] for file in found})
            if held := [name for name in first if name.lower() in _OF_MASKS]:
                rank_zero_warn(
                    f"{printable(folder / held[0])} has a usual name for masks, but its pictures "
                    f"are used as images. If they are masks, set {self.root_option} to a folder "
                    "that holds the images alone."
                )
        return self._listed[folder]

    @cached_property
    def _parts(self) -> dict[str, Path]:
        """The folders of `train`, `val` and, beside these two, `test`.

        The first two are the same folder where a hash splits its images.
        """
        if not self.root.is_dir():
            raise FileNotFoundError(f"There is no folder {self.root}. Set {self.root_option}.")
        folders = folders_in(self.root)
        there = {folder.name.lower() for folder in folders}
        train, val = _parts_of(folders)
        if train and val:
            test = part_of(folders, TEST)
            return {"train": train, "val": val} | ({} if test in (None, val) else {"test": test})
        if len(folders) == 1 and all(_parts_of(folders_in(folders[0]))):
            rank_zero_warn(
                f"{printable(self.root)} holds one folder, {printable(folders[0].name)}, which has "
                "its own training and validation images: here all of them are used together. Did "
                f"you mean {self.root_option} {printable(folders[0])}?"
            )
        if val and not there - set(_HELD_OUT):
            raise FileNotFoundError(
                f"There is {val}, but no {self.root / 'train'}: expected train and val, or a "
                "folder for each class."
            )
        # Beside other folders, `train` is a class, as the trains of VOC.
        alone = train if len(there) == 1 else None
        return dict.fromkeys(("train", "val"), alone or self.root)


def _say_where_images_lie_deeper(folder: Path, inside: Sequence[tuple[str, ...]]) -> None:
    """Warns if no image lies directly in its class: the folders may be splits, not classes."""
    if min(map(len, inside)) <= len(("CLASS", "IMAGE")):
        return
    taken = sorted({printable(parts[0]) for parts in inside})
    rank_zero_warn(
        f"The folders right below {printable(folder)} are taken for the classes: "
        f"{', '.join(taken[:_NAMED])}{' …' * (len(taken) > _NAMED)}. No image lies directly in "
        f"one, all lie deeper, as {printable('/'.join(inside[0]))}. If that is wrong: expected "
        f"{printable(folder)}/CLASS/IMAGE, or CLASS/IMAGE below train/ and val/."
    )


def _entries(files: Iterable[Path], folder: Path) -> set[str]:
    """Returns the names directly inside a folder on the paths to these files."""
    return {composed(file.relative_to(folder).parts[0]) for file in files}


def _parts_of(folders: Sequence[Path]) -> tuple[Path | None, Path | None]:
    """Returns which of these folders holds the training images, and which the validation images."""
    return part_of(folders, TRAIN), part_of(folders, _HELD_OUT)
