"""Where images, their masks and their classes lie: what every data set says of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.masks import FilePair
from datamodules.meanings import Meanings
from datamodules.reading import ImageItem
from utils.palette import palette


class ImageSource(ABC):
    """A data set: which images there are, and where.

    Args:
        root: its folder.
        split: what is trained on, a name that `files` knows.

    Attributes:
        root_option: under which `root` was given, as messages name it; who gave it under another
            says so.
    """

    root_option = "--data.root"

    def __init__(self, root: str, split: str = "train") -> None:
        self.root = Path(root).expanduser()
        self.split = split

    def prepare(self) -> None:  # noqa: B027 (most have nothing to prepare)
        """Downloads or draws what is missing; once, before anything is listed."""

    @abstractmethod
    def files(self, split: str) -> Sequence[ImageItem]:
        """Returns the images of a split: `train`, `val` (never trained on) and others of its own.

        Raises:
            FileNotFoundError: the data is not where it should be; says what to do.
            ValueError: there is no such split.
        """


class MaskedSource(ImageSource):
    """A data set whose images have masks of labels, 255 void."""

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Names by label; `background` first where there is one. A class attribute will do."""

    def propose_classes(self) -> None:
        """Writes a list of classes where the data set needs one and there is none.

        Raises:
            FileNotFoundError: one has been written, to be edited.
            ValueError: what the masks hold cannot be classes.
        """

    @property
    def meanings(self) -> Meanings | None:
        """What the pixels of mask files stand for; None: values are labels, and 255 void."""
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
        """Says what could be done when some of these masks cannot be used; nothing by default."""
        return ""

    @abstractmethod
    def pairs(self, split: str) -> list[FilePair]:
        """Returns images and their masks of a split; otherwise as `files`."""

    def held_out(self) -> list[FilePair] | None:
        """Returns what choices are made on; None: a share of the training images."""
        return None


class LabelledSource(ImageSource):
    """A data set whose images have one class each."""

    @property
    def judged_split(self) -> str:
        """What a probe is judged by. Where that is not `val`, choices are made on `val`."""
        return "val"

    def place_of(self, split: str) -> str:
        """Returns where a split lies, as messages name it; its name will do."""
        return split

    @abstractmethod
    def labels(self, split: str) -> tuple[tuple[str, ...], Sequence[int]]:
        """Returns the names of the classes, and the class of each of `files(split)`.

        Raises:
            FileNotFoundError: as `files`.
            ValueError: the images have no labels, or there is no such split.
        """
