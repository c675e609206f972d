"""Data sets whose classes the user lists in a file."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.masks.class_list import ClassList
from datamodules.masks.meanings import Meanings
from datamodules.masks.survey import advice, survey
from datamodules.sources import MaskedSource
from utils.console import console
from utils.palette import palette, with_colours
from utils.text import printable


class ListedClasses(MaskedSource):
    """A data set with a list of its classes, which is read on demand.

    Attributes:
        learnt: the classes of a checkpoint, for machines that do not have its data.
    """

    learnt: tuple[str, ...] = ()

    @property
    @abstractmethod
    def class_list(self) -> ClassList:
        """The classes.

        Raises:
            FileNotFoundError: there is no list.
            ValueError: an entry is not valid.
        """

    def of_checkpoint(self) -> ClassList:
        """Returns the classes that the checkpoint knows, and warns that the data is missing."""
        console.warning(
            "There is no %s: the classes are those of the checkpoint, in colours of our own.",
            printable(self.root),
        )
        return ClassList.of_names(self.learnt)

    @property
    def classes(self) -> tuple[str, ...]:
        """See `MaskedSource.classes`."""
        return self.class_list.names

    @property
    def meanings(self) -> Meanings:
        """See `MaskedSource.meanings`."""
        return self.class_list.meanings

    @property
    def colours(self) -> NDArray[np.uint8]:
        """See `MaskedSource.colours`."""
        return with_colours(palette(self.classes), self.class_list.colours)

    def advice(self, masks: Sequence[Path]) -> str:
        """See `MaskedSource.advice`."""
        return advice(survey(masks), self.class_list, masks)
