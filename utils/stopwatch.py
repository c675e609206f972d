"""Measures how long the parts of a run take."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class Stopwatch:
    """Seconds by phase. The time of a nested phase does not count for the outer one.

    `readouts/views` is a phase of the group `readouts`.

    Args:
        now: returns the time in seconds.

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
        """Adds the time of the block to `phase`."""
        self._turn()
        self._within.append(phase)
        try:
            yield
        finally:
            self._turn()
            self._within.pop()

    def group(self, name: str) -> dict[str, float]:
        """Returns the seconds of each phase of a group, by the rest of its name."""
        prefix = f"{name}/"
        return {
            phase.removeprefix(prefix): taken
            for phase, taken in self.seconds.items()
            if phase.startswith(prefix)
        }

    def total(self, group: str) -> float:
        """Returns the seconds of all phases of a group."""
        return sum(self.group(group).values())

    def so_far(self) -> dict[str, float]:
        """Returns the seconds of each phase up to now, also of those that go on."""
        self._turn()
        return dict(self.seconds)

    def add(self, seconds: Mapping[str, float]) -> None:
        """Adds what another one has measured."""
        for phase, taken in seconds.items():
            self.seconds[phase] += taken

    def _turn(self) -> None:
        now = self._now()
        if self._within:
            self.seconds[self._within[-1]] += now - self._since
        self._since = now
