"""A few of many, evenly spaced; which of the ends are among them is the difference between these.

Images of a set are all alike, and each stands for those that follow it. What is shown over time is
shown from the first to the last, and of a network the last layer says most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """Returns at most `count` of them, evenly spaced, the first among them."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def evenly_to_last(items: Sequence[Item], count: int) -> list[Item]:
    """Returns at most `count` of them, evenly spaced, the last among them."""
    count = min(count, len(items))
    return [items[(i + 1) * len(items) // count - 1] for i in range(count)]


def evenly_from_first_to_last(items: Sequence[Item], count: int) -> list[Item]:
    """Returns at most `count` of them, evenly spaced, both ends among them; the first of one."""
    count = min(count, len(items))
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]
