"""Signals that ask a process to stop, and their handlers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

Previous = Mapping[signal.Signals, Any]

# Sent when a terminal is closed, and by SLURM's `--signal=USR1@120`; Windows has neither.
_OTHERS = [getattr(signal, name) for name in ("SIGHUP", "SIGUSR1") if hasattr(signal, name)]
TERMINATING: tuple[signal.Signals, ...] = (signal.SIGTERM, *_OTHERS)
STOPPING: tuple[signal.Signals, ...] = (signal.SIGINT, *TERMINATING)


def listen(
    handler: Callable[[int, FrameType | None], None], numbers: Sequence[signal.Signals]
) -> Previous:
    """Sets a handler for signals, except for those that `nohup` ignores.

    Returns:
        The previous handlers by signal; empty in a thread, where handlers cannot be set.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    kept_away = [each for each in _OTHERS if signal.getsignal(each) is signal.SIG_IGN]
    return {each: signal.signal(each, handler) for each in numbers if each not in kept_away}


def restore(previous: Previous) -> None:
    """Restores the handlers from before `listen`."""
    for number, handler in previous.items():
        signal.signal(number, handler)


@contextmanager
def listening(
    handler: Callable[[int, FrameType | None], None], numbers: Sequence[signal.Signals]
) -> Iterator[None]:
    """Does what `listen` does, only for the block."""
    previous = listen(handler, numbers)
    try:
        yield
    finally:
        restore(previous)
