"""What asks a process to stop, and who hears it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

Previous = Mapping[signal.Signals, Any]

# A terminal that is closed, and SLURM's `--signal=USR1@120`; Windows has none of both.
_OTHERS = [getattr(signal, name) for name in ("SIGHUP", "SIGUSR1") if hasattr(signal, name)]
TERMINATING: tuple[signal.Signals, ...] = (signal.SIGTERM, *_OTHERS)
STOPPING: tuple[signal.Signals, ...] = (signal.SIGINT, *TERMINATING)


def listen(
    handler: Callable[[int, FrameType | None], None], numbers: Sequence[signal.Signals]
) -> Previous:
    """Lets a handler hear signals, but for those that `nohup` keeps away.

    Returns:
        Who listened before, by signal; nothing in a thread, which hears of none.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    kept_away = [each for each in _OTHERS if signal.getsignal(each) is signal.SIG_IGN]
    return {each: signal.signal(each, handler) for each in numbers if each not in kept_away}


def restore(previous: Previous) -> None:
    """Lets those listen again who did before `listen`."""
    for number, handler in previous.items():
        signal.signal(number, handler)


@contextmanager
def listening(
    handler: Callable[[int, FrameType | None], None], numbers: Sequence[signal.Signals]
) -> Iterator[None]:
    """Does what `listen` does, for a while."""
    previous = listen(handler, numbers)
    try:
        yield
    finally:
        restore(previous)
