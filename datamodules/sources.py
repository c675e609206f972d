"""The interfaces of data sets: where their images, masks and labels are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.masks.meanings import Meanings
from datamodules.masks.reading import FilePair
from datamodules.reading import ImageItem
from utils.palette import palette


class ImageSource(ABC):
    """A data set: which images there are, and where.

    Args:
        root: its folder.
        split: what is trained on, a name that `files` knows.

    Attributes:
        root_option: the option that `root` was given by, for messages; set it if it was another.
    """

    root_option = "--data.root"

    def __init__(self, root: str, split: str = "train") -> None:
        self.root = Path(root).expanduser()
        self.split = split

    def prepare(self) -> None:  # noqa: B027 (most have nothing to prepare)
        """Downloads or draws what is missing; called once, before anything is listed."""

    @abstractmethod
    def files(self, split: str) -> Sequence[ImageItem]:
        """Returns the images of a split: `train`, `val` (never trained on) and others of its own.

        Raises:
            FileNotFoundError: the data is missing; says what to do.
            ValueError: there is no such split.
        """


class MaskedSource(ImageSource):
    """A data set whose images have masks of labels, 255 void."""

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Names by label; `background` first where there is one. A class attribute will do."""

    def propose_classes(self) -> None:
        """Writes a list of classes if the data set needs one and has none.

        Raises:
            FileNotFoundError: a list has been written, for the user to edit.
            ValueError: what the masks hold cannot be classes.
        """

    @property
    def meanings(self) -> Meanings | None:
        """What the pixels of masks mean; None: values are labels, and 255 is void."""
        return None

    @property
    def colours(self) -> NDArray[np.uint8]:
        """A colour for every label, void included, `(256, 3)`."""
        return palette(self.classes)

    @property
    def published_jaccard(self) -> Mapping[str, float]:
        """How well the attention of published networks finds its objects, by network.

        The best head's Jaccard index, see `models.measures.attention_quality`.
        """
        return {}

    def advice(self, masks: Sequence[Path]) -> str:
        """Says what to do if some of these masks cannot be used; empty by default."""
        return ""

    @abstractmethod
    def pairs(self, split: str) -> list[FilePair]:
        """Returns the images of a split with their masks; otherwise like `files`."""

    def held_out(self) -> list[FilePair] | None:
        """Returns the images to make choices on; None: a share of the training images."""
        return None


class LabelledSource(ImageSource):
    """A data set whose images have one class each."""

    @property
    def judged_split(self) -> str:
        """The split that a probe is tested on. If it is not `val`, choices are made on `val`."""
        return "val"

    def place_of(self, split: str) -> str:
        """Returns the name of a split for messages, such as its folder."""
        return split

    @abstractmethod
    def labels(self, split: str) -> tuple[tuple[str, ...], Sequence[int]]:
        """Returns the names of the classes, and the class of each of `files(split)`.

        Raises:
            FileNotFoundError: see `files`.
            ValueError: the images have no labels, or there is no such split.
        """
