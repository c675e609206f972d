"""Atomic writing: to a temporary file, flushed, then moved into place."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from utils.console import console

_TEMPORARY = re.compile(r"\..+\.\d+")  # .NAME.PID
_FIVE_MINUTES, _DAY = 300, 86_400  # seconds
_MOMENTS = (0.1, 0.3, 1.0)  # seconds


def make_folder(folder: Path) -> None:
    """Makes a folder and its parents, if they do not exist.

    Raises:
        OSError: it cannot be made; names it, the reason and what to do, with its `errno`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _told(f"The folder {folder} cannot be made", error) from error


@contextmanager
def replacing(file: Path) -> Iterator[BinaryIO]:
    """Opens a stream whose content replaces a file if the block ends without an error.

    A reader sees the old content or the new. If the process is killed, the disk is full or the
    machine loses power, the old content stays.

    Args:
        file: in a folder that exists.

    Raises:
        OSError: it cannot be written; names the file, the reason and what to do, with its `errno`.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temporary.open("w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        _move(temporary, file)
        _flush_folder(file.parent)
    except OSError as error:
        raise _told(f"{file} cannot be written", error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _move(temporary: Path, file: Path) -> None:
    # On Windows virus scanners and the like hold a file for a moment, which then stays as it is.
    for seconds in _MOMENTS:
        with suppress(PermissionError):
            temporary.replace(file)
            return
        time.sleep(seconds)
    temporary.replace(file)


def write_atomically(file: Path, content: str | bytes) -> None:
    """Replaces the content of a file, as `replacing` does."""
    with replacing(file) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


def append(file: Path, content: str) -> None:
    """Appends to an existing file.

    Its old content always stays: a killed process may leave a part of the new content, a full disk
    none of it.

    Raises:
        OSError: it cannot be written; names the file, the reason and what to do.
    """
    size = file.stat().st_size
    try:
        with file.open("ab") as stream:
            stream.write(content.encode())
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        with suppress(OSError):
            os.truncate(file, size)
        raise _told(f"{file} cannot be written", error) from error


def is_temporary(file: Path) -> bool:
    """Whether a file is a temporary file of `replacing`."""
    return _TEMPORARY.fullmatch(file.name) is not None


def sweep(folder: Path) -> None:
    """Removes temporary files of killed processes at any depth; nobody may write there now."""
    for file in folder.rglob(".*"):
        if is_temporary(file) and file.is_file():
            with suppress(OSError):
                file.unlink(missing_ok=True)


def owner() -> str:
    """Returns a part for the name of a folder that says which process is filling it."""
    return f"@{socket.gethostname()}@{os.getpid()}"  # host names have no @


def remove_abandoned(folders: Iterable[Path]) -> None:
    """Removes folders that killed processes were filling.

    A folder is abandoned after a day without a change. Five minutes are enough if its name
    (`owner`) says that the process ran on this machine, and it is gone. Not less, because a
    container may have the machine's host name, and processes that are not visible here.
    """
    of_this_machine = re.compile(rf"@{re.escape(socket.gethostname())}@(\d+)")
    for folder in folders:
        with suppress(OSError):  # another process may remove it as well
            newest = max(file.stat().st_mtime for file in (folder, *folder.rglob("*")))
            process = of_this_machine.search(folder.name)
            dead = process and Path("/proc").exists() and not Path("/proc", process[1]).exists()
            if time.time() - newest > (_FIVE_MINUTES if dead else _DAY):
                shutil.rmtree(folder, ignore_errors=True)


def read_json(file: Path) -> dict[str, Any]:
    """Reads an object; empty if there is no file, or it is damaged (with a warning)."""
    try:
        content = json.loads(file.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, got a {type(content).__name__}")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        name_damaged(file, str(error) if file.stat().st_size else "it is empty")
        return {}
    return content


def name_damaged(file: Path, reason: str) -> None:
    """Warns that a file is damaged; once, until the file changes."""
    _name_once(file, file.stat().st_mtime_ns, reason)


@cache
def _name_once(file: Path, changed: int, reason: str) -> None:
    console.warning("%s is damaged (%s): what cannot be read is ignored.", file, reason)


def _told(what: str, error: OSError) -> OSError:
    told = OSError(f"{what} ({_reason(error)}).")
    told.errno = error.errno
    return told


def _reason(error: OSError) -> str:
    what = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{what}: free space there; what was saved before is kept"
    if os.name == "nt" and error.errno == errno.EACCES:
        return f"{what}: close it where it is open, as in Excel, or make the folder writable"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{what}: make the folder writable, or choose another"
    if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST):
        return f"{what}: something else is in its place, move that away"
    return what


def _flush_folder(folder: Path) -> None:
    # Otherwise a power failure may undo the move. Not every system allows opening folders.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
