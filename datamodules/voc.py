"""Pascal VOC 2012 in its official folder layout (Everingham et al. 2015)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from torchvision.datasets import VOCSegmentation

from datamodules.listed_classes import ListedClasses
from datamodules.listing import by_stem, composed, image_files, is_image, read_list, root_nearby
from datamodules.masks.class_list import ClassList, read_class_list
from datamodules.masks.meanings import CLASS_LIST
from utils.text import count

CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted plant",
    "sheep",
    "sofa",
    "train",
    "tv monitor",
)
# ViT-S/16, last block, all 1,449 validation images at 480 px (Caron et al. 2021, fig. 4).
_PUBLISHED_JACCARD = {"DINO": 0.459, "supervised": 0.273, "random weights": 0.220}
# The extra masks of Hariharan et al. 2011 (SBD), as every toolbox distributes them.
AUGMENTED = "trainaug"
# Names may hold spaces.
_TWO_FILES = re.compile(r"(.*\.\w+)\s+\S.*\.\w+")
_WITH_FLAG = re.compile(r"(.+?)\s+(?:-1|0|1)")


def _places(root: Path) -> list[Path]:
    return [root, root / "VOCdevkit" / "VOC2012", root / "VOC2012", root / "VOCdevkit"]


def _holds_images(root: Path) -> Path | None:
    return next((place for place in _places(root) if (place / "JPEGImages").is_dir()), None)


def voc_files(folder: Path, split: str) -> list[Path]:
    """Lists the images of a split, JPEGs or others.

    Args:
        folder: holds JPEGImages and ImageSets.
        split: `train`, `val`: the segmentation lists; `trainaug`: that list with the extra masks;
            `all`: every image; `all_minus_val`.

    Raises:
        FileNotFoundError: a list, or a listed image, is missing.
        ValueError: the list is empty, or a training list with validation images.
    """
    if split == "all":
        return image_files(folder / "JPEGImages")
    if split == "all_minus_val":
        val = set(voc_files(folder, "val"))
        return [file for file in voc_files(folder, "all") if file not in val]
    listing = _listing(folder, split)
    names = _listed(listing)
    files = _named(folder / "JPEGImages", names, ".jpg")
    require(files, listing, "images")
    judged = () if split == "val" else map(composed, _listed(_listing(folder, "val")))
    if shared := sorted(set(map(composed, names)).intersection(judged)):
        raise ValueError(
            f"{listing} holds {count(len(shared), 'validation image')}, first: {shared[0]}. "
            "Training on them would make the result worthless; use a list without them."
        )
    return files


def _listing(folder: Path, split: str) -> Path:
    return folder / "ImageSets" / "Segmentation" / f"{split}.txt"


def _listed(listing: Path) -> list[str]:
    if not listing.is_file():
        raise FileNotFoundError(
            f"{listing} is missing: the VOC folder is incomplete. Get it, or write it: the names "
            "of its images, one a line."
        )
    names = read_list(listing, _name)
    if not names:
        raise ValueError(f"{listing} lists no images.")
    # Lists of one class add to each image whether it shows the class: 1, -1, or 0 if unclear.
    flagged = [_WITH_FLAG.fullmatch(name) for name in names]
    return [found[1] for found in flagged if found] if all(flagged) else names


def _name(line: str) -> str:
    # Some lists of the extra masks give `/JPEGImages/x.jpg /SegmentationClassAug/x.png`.
    two = _TWO_FILES.fullmatch(line)
    word = two[1] if two else line
    return Path(word).stem if "/" in word or is_image(Path(word)) else word


def _named(folder: Path, names: Sequence[str], suffix: str) -> list[Path]:
    """Returns the file of each name, with the usual suffix or else that of any image."""
    usual = [folder / f"{name}{suffix}" for name in names]
    if all(file.exists() for file in usual):
        return usual
    others = by_stem(filter(is_image, folder.iterdir()), folder)
    return [
        file if file.exists() else others.get(composed(name), [file])[0]
        for file, name in zip(usual, names, strict=True)
    ]


def require(files: list[Path], listing: Path, what: str) -> None:
    """Checks that listed files are there.

    Raises:
        FileNotFoundError: some are missing; says how many, and names the first.
    """
    missing = [file for file in files if not file.exists()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} {what} in {listing} do not exist, first: {missing[0]}."
        )


def voc_pairs(folder: Path, split: str) -> list[tuple[Path, Path]]:
    """Lists images and masks of `train`, `val` or `trainaug`.

    Raises:
        FileNotFoundError: some or all masks are missing.
        ValueError: the split has no masks.
    """
    if split not in ("train", "val", AUGMENTED):
        raise ValueError(f"--data.split {split}: VOC has masks for train and {AUGMENTED} only.")
    images = voc_files(folder, split)
    masks = folder / ("SegmentationClassAug" if split == AUGMENTED else "SegmentationClass")
    if not masks.is_dir():
        extra = "and the extra masks (SBD) beside it" if split == AUGMENTED else "not images alone"
        raise FileNotFoundError(
            f"{folder} has no {masks.name}: segmentation needs the full VOC 2012 archive, {extra}."
        )
    files = _named(masks, [image.stem for image in images], ".png")
    require(files, _listing(folder, split), "masks")
    return list(zip(images, files, strict=True))


class VOC(ListedClasses):
    """VOC 2012: the segmentation lists (1,464 / 1,449 images), trainaug (10,582), or all 17,125.

    Other data in VOC's layout needs a list of its classes, `classes.yaml`, beside JPEGImages.
    """

    def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
        super().__init__(root, split)
        self.download = download

    @property
    def folder(self) -> Path:
        """The folder that holds JPEGImages: `root` itself or a usual place below it.

        Raises:
            FileNotFoundError: there is none; lists the places.
        """
        found = _holds_images(self.root)
        if found is None:
            nearby = root_nearby(self.root, _holds_images, self.root_option)
            raise FileNotFoundError(
                f"No Pascal VOC at {self.root_option} {self.root}: expected a folder JPEGImages in "
                f"one of {', '.join(map(str, _places(self.root)))}.{nearby} --data.download true "
                "fetches it (2 GB)."
            )
        return found

    def prepare(self) -> None:
        """Downloads the data with torchvision if that was asked for and it is missing."""
        if self.download and _holds_images(self.root) is None:
            VOCSegmentation(str(self.root), year="2012", image_set="train", download=True)

    @cached_property
    def class_list(self) -> ClassList:
        """See `ListedClasses.class_list`; VOC's if there is no list, or no data (yet)."""
        if self.learnt not in ((), CLASSES) and not self.root.is_dir():
            return self.of_checkpoint()
        try:
            file = self.folder / CLASS_LIST
        except FileNotFoundError:
            return ClassList.of_names(CLASSES)
        return read_class_list(file) if file.exists() else ClassList.of_names(CLASSES)

    @property
    def published_jaccard(self) -> Mapping[str, float]:
        """See `MaskedSource.published_jaccard`."""
        return _PUBLISHED_JACCARD if self.classes == CLASSES else {}

    def files(self, split: str) -> list[Path]:
        """See `ImageSource.files`; also `trainaug`, `all_minus_val` and `all`."""
        return voc_files(self.folder, split)

    def pairs(self, split: str) -> list[tuple[Path, Path]]:
        """See `MaskedSource.pairs`."""
        return voc_pairs(self.folder, split)
