"""Chooses a few of many items, evenly spaced; the functions differ in which ends they include.

For images, each represents those that follow it. A development over time is shown from the first
to the last, and among the layers of a network the last matters most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """Returns at most `count` of them, evenly spaced, including the first."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def evenly_to_last(items: Sequence[Item], count: int) -> list[Item]:
    """Returns at most `count` of them, evenly spaced, including the last."""
    count = min(count, len(items))
    return [items[(i + 1) * len(items) // count - 1] for i in range(count)]


def evenly_from_first_to_last(items: Sequence[Item], count: int) -> list[Item]:
    """Returns at most `count` of them, evenly spaced, with both ends; the first if `count` is 1."""
    count = min(count, len(items))
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]
