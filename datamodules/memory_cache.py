"""Keeps decoded images that are needed again and again in memory, up to a limit."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from torch import Tensor

MOST_BYTES = 256 * 2**20

Value = TypeVar("Value", bound=Tensor | tuple[Tensor, ...] | None)


class MemoryCache:
    """Decoded images by key: 320 squares of 224 px with masks of 375 px take 93 MB.

    Args:
        most_bytes: once it is full, further images are made anew every time.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self._values: dict[Hashable, Any] = {}
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Returns the value of a key, and makes it if it is missing.

        Args:
            key: contains everything the value depends on.
            make: makes a tensor, a tuple of them, or None if there is no image.
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
