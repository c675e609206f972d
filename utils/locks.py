"""Lock files, by which processes keep out of each other's way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def claimed(file: Path, timeout: float = 0) -> Iterator[bool]:
    """Holds a lock file while the block runs; a lock ends with its process.

    Args:
        file: the lock.
        timeout: seconds to wait for another process; -1: as long as it takes.

    Yields:
        Whether this process has the lock.

    Raises:
        OSError: its folder cannot be written.
    """
    lock = FileLock(file)
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise OSError(
            f"{file.parent} cannot be written ({error.strerror}). Make it writable, or copy it to "
            "where you may write."
        ) from error
    try:
        yield True
    finally:
        lock.release()
