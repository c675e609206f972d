"""Training on fixed views: every draw picks one of them for an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

from datamodules.seeding import Draw, seeded


class Images(Protocol):
    """Images indexed by draws."""

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, draw: Draw) -> Any:
        """Gives image `index` as seen in `epoch`."""
        ...


class FixedViewsOf(Dataset[Any]):
    """Images of which every epoch sees one fixed view each.

    Args:
        views: data sets of the same images, one for each view, indexed by draws of epoch 0.
        seed: makes the chosen view a function of (seed, epoch, index).
    """

    def __init__(self, views: Sequence[Images], seed: int) -> None:
        self.views = list(views)
        self.seed = seed

    def __len__(self) -> int:
        """Number of images."""
        return len(self.views[0])

    def __getitem__(self, draw: Draw) -> Any:
        """Gives image `index` as seen in `epoch`."""
        epoch, index = draw
        with seeded(self.seed, epoch, index):
            number = int(torch.randint(len(self.views), ()))
        return self.views[number][0, index]
