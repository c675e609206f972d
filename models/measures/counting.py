"""Confusion counts that stay cheap in deterministic mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torchmetrics.classification import MulticlassConfusionMatrix


@contextmanager
def counting() -> Iterator[None]:
    """Lets torchmetrics count by `torch.bincount`, even in deterministic mode.

    Sums of integers do not depend on their order. In deterministic mode torchmetrics would compare
    every item with every pair of classes: gigabytes for an image, or for a batch of ImageNet.
    """
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)


class Confusion(MulticlassConfusionMatrix):
    """Counts by true and by predicted class, `(C, C)` int64."""

    def update(self, *arguments: Any, **named: Any) -> None:
        """See torchmetrics."""
        with counting():
            super().update(*arguments, **named)
