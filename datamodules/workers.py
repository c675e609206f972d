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

_KILLED = -9  # SIGKILL, a name that Windows lacks
_COULD_NOT_SEND = 74  # EX_IOERR of sysexits.h


class WorkerKilledError(ChildProcessError):
    """A process that loads images has died.

    Args:
        code: its exit code; if a signal killed it, the negative number of that.
        workers: number of such processes.

    Attributes:
        advice: options with which the run can continue.
    """

    def __init__(self, code: int, workers: int) -> None:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        if code == _COULD_NOT_SEND:
            how = (
                "could not hand over what it had loaded: shared memory (/dev/shm) is full, which "
                "is small in a container by default (docker run --shm-size 8g), or the name of "
                "$TMPDIR is too long"
            )
        self.advice = f"--data.num_workers {workers // 2}"
        memory = ", most often because memory ran out" if code == _KILLED else ""
        super().__init__(
            f"One of {workers} processes that load images {how}{memory}. "
            f"Fewer of them need less memory: {self.advice}."
        )


class Workers:
    """The worker processes of one DataLoader.

    Args:
        count: how many it starts; 0: the training process loads the images.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._processes: set[multiprocessing.process.BaseProcess] = set()

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Remembers the processes that are started inside this context.

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
        """Returns the error of a worker that died; None if all are alive or ended normally."""
        codes = [process.exitcode for process in self._processes]
        return next((WorkerKilledError(code, self.count) for code in codes if code), None)


def start_method() -> str | None:
    """Returns the start method of workers; None: Python's default.

    From Python 3.14, the default on Linux is a server that forks them. Such workers would import
    everything anew (half a gigabyte and seconds each), not know the classes of a notebook, and end
    with the server, which a SIGTERM to all processes of a run ends.
    """
    return "fork" if multiprocessing.get_start_method() == "forkserver" else None


def _allow_open_files() -> None:
    """Raises the limit of open files to what the system permits.

    A tensor from a worker keeps a file open for as long as it exists. The views of a large batch in
    small chunks come to thousands; the default limit of most systems is 1,024.
    """
    try:
        import resource
    except ImportError:  # Windows, which shares tensors without files
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS refuses the limit it reports
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def begin(_: int) -> None:
    """Prepares a worker process; its number does not matter."""
    _leave_stopping_to_the_main_process()
    # While a progress bar is shown, rich replaces both streams by ones with a lock. A thread of the
    # main process may have held it during the fork: then nobody would release it in this process.
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        setattr(sys, name, getattr(stream, "rich_proxied_file", stream))
    # Otherwise Python prints the error and lives on, and the main process waits for ever.
    setattr(Queue, "_on_queue_feeder_error", staticmethod(_end))  # noqa: B010 (private to mypy)


def _end(error: Exception, _: object) -> None:
    print(
        f"A process that loads images cannot hand them over: {error}", file=sys.stderr, flush=True
    )
    os._exit(_COULD_NOT_SEND)


def _leave_stopping_to_the_main_process() -> None:
    """Makes a worker ignore the signals that stop a run, until the main process ends it.

    Ctrl-C, a closed terminal, and SIGTERM from SLURM or `timeout` reach all processes of a run. The
    main process first finishes its step and saves, and needs its workers for that.
    """
    for number in set(STOPPING) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux: tells which process sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_main_process_says, daemon=True).start()


def _end_when_the_main_process_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
