"""How long the parts of a run take."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds by phase. A phase within another one counts for itself alone.

    Args:
        now: the time in seconds.

    Attributes:
        seconds: of each phase, so far.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._now = now
        self._within: list[str] = []
        self._since = now()

    @contextmanager
    def timing(self, phase: str) -> Iterator[None]:
        """Counts what happens inside for `phase`."""
        self._turn()
        self._within.append(phase)
        try:
            yield
        finally:
            self._turn()
            self._within.pop()

    def _turn(self) -> None:
        now = self._now()
        if self._within:
            self.seconds[self._within[-1]] += now - self._since
        self._since = now
