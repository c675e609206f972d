"""Data sets whose classes people write down themselves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.base import MaskedSource
from datamodules.class_list import ClassList
from datamodules.mask_survey import advice, survey
from datamodules.meanings import Meanings
from utils.palette import palette, with_colours


class ListedClasses(MaskedSource):
    """A data set with a list of its classes, which is read when they are asked for."""

    @property
    @abstractmethod
    def class_list(self) -> ClassList:
        """The classes.

        Raises:
            FileNotFoundError: there is no list.
            ValueError: it cannot be understood.
        """

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
