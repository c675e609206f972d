"""CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32 x 32 px."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets import CIFAR10 as Official

from datamodules.listing import root_nearby
from datamodules.reading import ImageItem, StoredImage
from datamodules.sources import LabelledSource
from utils.text import command_line

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


class Images(NamedTuple):
    """A split: pixels `(N, 32, 32, 3)` uint8, labels `(N,)`, None where the file has none."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.integer] | None


class CIFAR10(LabelledSource):
    """The official batches, or an npz file with `x_train` and `x_test`, `(N, 32, 32, 3)` uint8.

    The npz file may also have `y_train` and `y_test`, `(N,)`, and `classes`, the names. The test
    images are the validation split: self-supervised training never sees them.

    Args:
        root: the folder that holds cifar-10-batches-py, or the npz file.
        download: fetch the official archive (170 MB) if it is missing.
    """

    def __init__(self, root: str, download: bool = False) -> None:
        super().__init__(root)
        self.download = download
        self._read: dict[str, Images] = {}

    def prepare(self) -> None:
        """Downloads the data with torchvision if that was asked for and it is missing."""
        if self.download and not _holds_batches(self.root):
            Official(str(self.root), download=True)

    def files(self, split: str) -> Sequence[ImageItem]:
        """See `ImageSource.files`; `train` and `val`."""
        return [
            StoredImage(f"{self.root.name}/{split}/{number:05d}", pixels)
            for number, pixels in enumerate(self._images(split).pixels)
        ]

    def labels(self, split: str) -> tuple[tuple[str, ...], list[int]]:
        """See `LabelledSource.labels`; `train` and `val`."""
        labels = self._images(split).labels
        if labels is None:
            raise ValueError(f"{self.root} has no labels: y_train and y_test are missing.")
        return CLASSES, labels.astype(int).tolist()  # a file may hold them as float

    def _images(self, split: str) -> Images:
        if split not in ("train", "val"):
            raise ValueError(f"--data.split {split}: CIFAR-10 has train and val only.")
        if not self._read:
            self._read = dict(zip(("train", "val"), self._arrays(), strict=True))
        return self._read[split]

    def _arrays(self) -> tuple[Images, Images]:
        root = self.root
        if root.is_file():
            return _from_npz(root)
        # The whole command, because a probe has no option to download its data.
        place = command_line(str(root))
        fetching = f"`--data.name cifar10 --data.root {place} --data.download true`"
        if not _holds_batches(root):
            nearby = root_nearby(root, _holds_batches, self.root_option)
            raise FileNotFoundError(
                f"No CIFAR-10 at {self.root_option} {root}: expected a folder "
                f"{Official.base_folder} in it, or an npz file.{nearby} A run with {fetching} "
                "fetches it (170 MB)."
            )
        try:
            both = [Official(str(root), train=train) for train in (True, False)]
        except RuntimeError as error:  # torchvision raises it for a missing or altered batch
            raise ValueError(
                f"{root / Official.base_folder} is incomplete or corrupted; remove it, and a run "
                f"with {fetching} fetches it."
            ) from error
        train, test = (Images(part.data, np.array(part.targets)) for part in both)
        return train, test


def _holds_batches(root: Path) -> bool:
    return (root / Official.base_folder).is_dir()


def _from_npz(file: Path) -> tuple[Images, Images]:
    try:
        with np.load(file, allow_pickle=False) as content:
            train, test = (
                Images(content[f"x_{part}"], content.get(f"y_{part}")) for part in ("train", "test")
            )
            names = tuple(map(str, content.get("classes", CLASSES)))
    except Exception as error:  # NumPy's parser may raise anything
        raise ValueError(
            f"{file} is no npz file of CIFAR-10: it needs x_train and x_test ({error})."
        ) from error
    if names != CLASSES:
        raise ValueError(f"{file} has classes {', '.join(names[:4])}, …: these are not CIFAR-10's.")
    for part, (pixels, labels) in (("train", train), ("test", test)):
        colours = pixels.ndim == 4 and pixels.shape[-1] == 3
        if pixels.dtype != np.uint8 or not colours or not pixels.size:
            raise ValueError(
                f"{file}: x_{part} is {pixels.dtype} {pixels.shape}, expected uint8 (N, 32, 32, 3)."
            )
        if labels is None:
            continue
        if labels.shape != (len(pixels),):
            raise ValueError(
                f"{file}: y_{part} is {labels.shape}, expected one label for each of the "
                f"{len(pixels)} images."
            )
        if not np.isin(labels, range(len(CLASSES))).all():
            raise ValueError(
                f"{file}: y_{part} has labels of no class, expected whole numbers from 0 to "
                f"{len(CLASSES) - 1}."
            )
    return train, test
