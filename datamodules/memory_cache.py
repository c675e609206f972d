"""Decoded images that are asked for again and again, held in memory as long as there is room."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from torch import Tensor

MOST_BYTES = 256 * 2**20

Value = TypeVar("Value", bound=Tensor | tuple[Tensor, ...] | None)


class MemoryCache:
    """What has been made of images: 320 squares of 224 px with masks of 375 px are 93 MB.

    Args:
        most_bytes: beyond that, images are made anew every time.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self._values: dict[Hashable, Any] = {}
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Returns what is held under a key, and makes it if nothing is.

        Args:
            key: says all that it is made from.
            make: makes a tensor, several, or None where there is no image.
        """
        if key in self._values:
            value: Value = self._values[key]
            return value
        value = make()
        parts = value if isinstance(value, tuple) else (value,)
        size = sum(part.nbytes for part in parts if part is not None)
        if self._bytes + size <= self.most_bytes:
            self._values[key] = value
            self._bytes += size
        return value
