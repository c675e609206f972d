"""The processes that load images, and what to say when one of them is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.queues import Queue

from utils.signals import STOPPING

_KILLED = -9  # by SIGKILL, which Windows has no name for
_NOTHING_HANDED_OVER = 74  # EX_IOERR of sysexits.h


class WorkerKilledError(ChildProcessError):
    """A process that loads images is no more.

    Args:
        code: how it ended; the negative number of the signal that killed it.
        workers: how many there were.

    Attributes:
        advice: options with which the run can go on.
    """

    def __init__(self, code: int, workers: int) -> None:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        if code == _NOTHING_HANDED_OVER:
            how = (
                "could not hand over what it had loaded: shared memory (/dev/shm) is full, of "
                "which a container has little unless told (docker run --shm-size 8g), or the name "
                "of $TMPDIR is too long"
            )
        self.advice = f"--data.num_workers {workers // 2}"
        memory = ", most often because memory ran out" if code == _KILLED else ""
        super().__init__(
            f"One of {workers} processes that load images {how}{memory}. "
            f"Fewer of them need less memory: {self.advice}."
        )


class Workers:
    """Those of one DataLoader.

    Args:
        count: how many it starts; 0: images are loaded by the process that trains.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._processes: set[multiprocessing.process.BaseProcess] = set()

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Remembers the processes that are started meanwhile.

        Raises:
            OSError: the system does not let them start.
        """
        if self.count:
            _allow_open_files()
        before = set(multiprocessing.active_children())
        try:
            yield
        except OSError as error:
            raise OSError(
                f"The processes that load images cannot be started ({error}). Fewer than "
                f"{self.count} of them may be, and none is needed: --data.num_workers 0."
            ) from error
        self._processes |= set(multiprocessing.active_children()) - before

    def killed(self) -> WorkerKilledError | None:
        """Returns the error of one that is no more; None while all live, or have ended well."""
        codes = [process.exitcode for process in self._processes]
        return next((WorkerKilledError(code, self.count) for code in codes if code), None)


def start_method() -> str | None:
    """Returns how they start; None: as Python has it.

    From Python 3.14 on, on Linux, that is by a server: they would begin with nothing (half a
    gigabyte and seconds of imports each), know no class of a notebook, and end with the server,
    which a SIGTERM to all processes of a run ends.
    """
    return "fork" if multiprocessing.get_start_method() == "forkserver" else None


def _allow_open_files() -> None:
    """Lets this process have as many files open as the system permits it.

    A tensor that a worker hands over is one for as long as it lives. The views of a large batch in
    small chunks come to thousands, and most systems let a process have 1,024 unless it asks.
    """
    try:
        import resource
    except ImportError:  # Windows, which hands tensors over otherwise
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS permits fewer than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def begin(_: int) -> None:
    """Prepares a process to load images, whatever its number."""
    _leave_stopping_to_the_main_process()
    # What is printed beside a bar waits for the one who draws it, who may have been at it when this
    # process was forked, and is not in here.
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        setattr(sys, name, getattr(stream, "rich_proxied_file", stream))
    # Python would print what it could not send, and the main process wait for it for ever.
    setattr(Queue, "_on_queue_feeder_error", staticmethod(_end))  # noqa: B010 (private to mypy)


def _end(error: Exception, _: object) -> None:
    print(
        f"A process that loads images cannot hand them over: {error}", file=sys.stderr, flush=True
    )
    os._exit(_NOTHING_HANDED_OVER)


def _leave_stopping_to_the_main_process() -> None:
    """Lets a worker outlive what stops the run, until the main process ends it.

    Ctrl-C, the end of a terminal, and the SIGTERM of SLURM and `timeout`, reach all processes of a
    run; the main process finishes its step and saves first, and needs its workers for that long.
    """
    for number in set(STOPPING) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux: it tells who sends
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_main_process_says, daemon=True).start()


def _end_when_the_main_process_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
