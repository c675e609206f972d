"""Your own images and masks, in folders, with a list of their classes."""

from __future__ import annotations

from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from datamodules.listed_classes import ListedClasses
from datamodules.listing import (
    TEST,
    TRAIN,
    VAL,
    by_stem,
    folders_in,
    image_files,
    part_of,
    root_nearby,
    set_apart,
)
from datamodules.masks.class_list import ClassList, read_class_list
from datamodules.masks.meanings import CLASS_LIST
from datamodules.masks.reading import FilePair
from datamodules.masks.survey import proposal, survey
from utils.console import console
from utils.files import write_atomically
from utils.text import count, printable

_PARTS = {*TRAIN, *VAL, *TEST}
_LAYOUT = "images/train, images/val, masks/train, masks/val"


class MaskFolder(ListedClasses):
    """`root/images/{train,val}` and `root/masks/{train,val}`, at any depth; `root/classes.yaml`.

    The folders may also be called `training`, `valid`, `validation` and `testing`, and in upper
    case. An image and its mask have the same name but for the suffix. The final evaluation uses
    `test` if it has masks, and then choices are made on `val`; otherwise it uses `val`. Without
    `val` (and also without `train`), a hash of the names sets a share of the images apart for it.

    Args:
        root: the folder.
        split: what is trained on.
        val_fraction: share of the images to set apart if there is no `val` folder.
    """

    def __init__(self, root: str, split: str = "train", val_fraction: float = 0.1) -> None:
        super().__init__(root, split)
        self.val_fraction = val_fraction
        self._masks: dict[str, dict[Path, Path]] = {}  # of images, by the folder they lie in

    @cached_property
    def class_list(self) -> ClassList:
        """See `ListedClasses.class_list`."""
        file = self.root / CLASS_LIST
        if self.learnt and not self.root.is_dir():
            return self.of_checkpoint()
        if not file.exists():
            raise FileNotFoundError(
                f"There is no {CLASS_LIST} in {self.root}, with the names of the classes. --task "
                "segmentation writes one to be edited."
            )
        return read_class_list(file)

    def propose_classes(self) -> None:
        """See `MaskedSource.propose_classes`."""
        file = self.root / CLASS_LIST
        if file.exists():
            return
        # Masks of all parts: a rare class may occur in images of the evaluation only.
        pairs = [*self.pairs("train"), *(self.held_out() or ()), *self.pairs("val")]
        found = survey([mask for _, mask in pairs])
        written = proposal(found)
        held = f"In {count(found.masks, 'mask')}: {found.shares()}."
        start = f"There is no {CLASS_LIST} in {self.root}. {held} "
        try:
            write_atomically(file, written)
        except OSError as error:
            raise FileNotFoundError(f"{start}{error} It would be:\n{written}") from error
        raise FileNotFoundError(
            f"{start}They are written to {file}: put the names of your classes there, and start "
            f"again. {found.doubts()}".rstrip()
        )

    def files(self, split: str) -> list[Path]:
        """See `ImageSource.files`; also `all`, and `all_minus_val` without the test images."""
        if split == "all":
            return image_files(self._folder("images"))
        if split == "all_minus_val":
            parts = [part.files for name, part in self._parts.items() if name != "test"]
            return sorted(chain.from_iterable(parts))
        return self._part(split).files

    def pairs(self, split: str) -> list[FilePair]:
        """See `MaskedSource.pairs`; images and masks of equal names."""
        return self._paired(self._part(split))

    def held_out(self) -> list[FilePair] | None:
        """See `MaskedSource.held_out`: `val` where there is a `test` with masks."""
        return self._paired(self._parts["val"]) if "val" in self._parts else None

    def _part(self, split: str) -> _Part:
        if split not in ("train", "val"):
            raise ValueError(f"--data.split {split}: a folder of masks has no such split.")
        return self._parts["test" if split == "val" else split]

    @cached_property
    def _parts(self) -> dict[str, _Part]:
        """Images to train on, to evaluate on (`test`) and, if there are both, to choose on."""
        images, masks = self._folder("images"), self._folder("masks")
        known = {"train": TRAIN, "val": VAL, "test": TEST}
        folders = folders_in(images)
        found = {name: part_of(folders, names) for name, names in known.items()}
        there = {name: folder.name for name, folder in found.items() if folder}
        if not there:
            return self._divided(".")
        if "train" not in there:
            (first, *_) = there.values()
            raise FileNotFoundError(
                f"There is {images / first}, but no {images / 'train'}: expected {_LAYOUT}."
            )
        if "test" in there and not (masks / there["test"]).is_dir():
            _leave_out(images / there["test"], masks)
            del there["test"]
        for folder in folders_in(masks):
            if folder.name.lower() in _PARTS and not (images / folder.name).is_dir():
                _leave_out(folder, images)
        if [*there] == ["train"]:
            return self._divided(there["train"])
        parts = {
            name: _Part(inside, image_files(images / inside)) for name, inside in there.items()
        }
        return parts if "test" in parts else {"train": parts["train"], "test": parts["val"]}

    def _divided(self, inside: str) -> dict[str, _Part]:
        folder = self.root / "images" / inside
        train, test = set_apart(image_files(folder), folder, self.val_fraction)
        console.info(
            "%s has no val/: a hash of their names sets %d of %s apart, to judge by.",
            *(printable(self.root / "images"), len(test), count(len(train) + len(test), "image")),
        )
        return {"train": _Part(inside, train), "test": _Part(inside, test)}

    def _folder(self, kind: str) -> Path:
        folder = self.root / kind
        if not folder.is_dir():
            raise FileNotFoundError(
                f"There is no folder {folder}. --data.name mask_folder expects {_LAYOUT} in "
                f"{self.root_option}, an image and its mask of equal names."
                f"{root_nearby(self.root, _holds_both, self.root_option)}"
            )
        return folder

    def _paired(self, part: _Part) -> list[FilePair]:
        if part.inside not in self._masks:
            folders = (self._folder(kind) / part.inside for kind in ("images", "masks"))
            self._masks[part.inside] = match_masks(*folders)
        masks = self._masks[part.inside]
        return [(image, masks[image]) for image in part.files]


def _leave_out(folder: Path, others: Path) -> None:
    console.warning(
        "warning: %s is left out, as there is no %s.",
        *(printable(folder), printable(others / folder.name)),
    )


class _Part(NamedTuple):
    """Images of a folder inside `images`, all or some of them."""

    inside: str
    files: list[Path]


def _holds_both(root: Path) -> bool:
    return all((root / kind).is_dir() for kind in ("images", "masks"))


def match_masks(images: Path, masks: Path) -> dict[Path, Path]:
    """Finds the mask of each image of a folder: of the same name but for the suffix.

    Raises:
        FileNotFoundError: there is no such folder, or nothing in it.
        ValueError: images without a mask, masks without an image, or several of one name.
    """
    known = tuple(by_stem(image_files(folder), folder) for folder in (images, masks))
    for found, what in zip(known, ("images", "masks"), strict=True):
        if double := next((files for files in found.values() if len(files) > 1), None):
            raise ValueError(
                f"There are {len(double)} {what} of one name, {double[0]} and {double[1].name}: "
                "which one counts? Remove the other."
            )
    for (ours, folder), (others, other), what, lacking in (
        ((known[0], images), (known[1], masks), "images", "mask"),
        ((known[1], masks), (known[0], images), "masks", "image"),
    ):
        if lonely := sorted(ours.keys() - others.keys()):
            (first,), (example,) = ours[lonely[0]], others[min(others)]
            raise ValueError(
                f"{len(lonely)} of {len(ours)} {what} in {folder} have no {lacking} of the same "
                f"name in {other}, first: {printable(first.relative_to(folder))}. What is there "
                f"is called as {printable(example.relative_to(other))}."
            )
    return {image: known[1][stem][0] for stem, (image,) in known[0].items()}
