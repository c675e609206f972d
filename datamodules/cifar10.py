"""CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32 x 32 px."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets import CIFAR10 as Official

from datamodules.base import ImageSource
from datamodules.loading import ImageItem, StoredImage

_ARRAYS = ("x_train", "x_test")


class CIFAR10(ImageSource):
    """The official batches, or an npz file with `x_train` and `x_test`, `(N, 32, 32, 3)` uint8.

    The test images are the validation split: self-supervised training never sees them.

    Args:
        root: the folder that holds cifar-10-batches-py, or the npz file.
        download: fetch the official archive (170 MB) when it is not there.
    """

    def __init__(self, root: str, download: bool = False) -> None:
        super().__init__(root)
        self.download = download
        self._read: dict[str, NDArray[Any]] = {}

    def prepare(self) -> None:
        """Downloads with torchvision when asked to and not there yet."""
        if self.download and not (self.root / Official.base_folder).is_dir():
            Official(str(self.root), download=True)

    def files(self, split: str) -> Sequence[ImageItem]:
        """See `ImageSource.files`; `train` and `val`."""
        if split not in ("train", "val"):
            raise ValueError(f"--data.split {split}: CIFAR-10 has train and val only.")
        if not self._read:
            self._read = dict(zip(("train", "val"), _arrays(self.root), strict=True))
        return [
            StoredImage(f"{self.root.name}/{split}/{number:05d}", pixels)
            for number, pixels in enumerate(self._read[split])
        ]


def _arrays(root: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    if root.is_file():
        return _from_npz(root)
    if not (root / Official.base_folder).is_dir():
        raise FileNotFoundError(
            f"No CIFAR-10 at --data.root {root}: expected a folder {Official.base_folder} in it, "
            "or an npz file. --data.download true fetches it (170 MB)."
        )
    try:
        return Official(str(root), train=True).data, Official(str(root), train=False).data
    except RuntimeError as error:  # torchvision's word for a missing or altered batch
        raise ValueError(
            f"{root / Official.base_folder} is incomplete or corrupted; remove it and use "
            "--data.download true."
        ) from error


def _from_npz(file: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        with np.load(file, allow_pickle=False) as content:
            train, test = (content[name] for name in _ARRAYS)
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{file} is no npz file of CIFAR-10: it needs {' and '.join(_ARRAYS)} ({error})."
        ) from error
    for name, images in zip(_ARRAYS, (train, test), strict=True):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"{file}: {name} is {images.dtype} {images.shape}, expected uint8 (N, 32, 32, 3)."
            )
    return train, test
