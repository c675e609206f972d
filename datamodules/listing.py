"""Which files belong to a data set: folders as found in practice, and lists of names."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import NoReturn, TypeVar

from pytorch_lightning.utilities import rank_zero_warn

from datamodules.reading import ImageItem
from utils.text import count, printable

Item = TypeVar("Item")

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
IMAGE_SUFFIXES = JPEG_SUFFIXES | {
    *(".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jp2", ".j2k", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga"),
}
# Formats of cameras and programs that Pillow alone cannot open.
_OTHER_PICTURES = frozenset(
    {
        *(".heic", ".heif", ".hif", ".jxl", ".svg", ".psd", ".exr", ".dcm"),
        *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"),
    }
)
# Usual names for the folders of splits; upper case works as well.
TRAIN, VAL, TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")
# Folders made by operating systems; names that begin with a dot (macOS's `._x.jpg`) are hidden too.
_OF_SYSTEMS = frozenset(
    {
        *("__macosx", "$recycle.bin", "system volume information", "lost+found"),
        *("@eadir", "@tmp", "#recycle", "@recycle", "#snapshot"),  # network storages
    }
)


def is_image(file: Path) -> bool:
    """Whether a file is an image by its name."""
    return file.suffix.lower() in IMAGE_SUFFIXES


def image_files(folder: Path) -> list[Path]:
    """Lists the images below a folder, sorted by path, as `files_below` finds them.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        PermissionError: a folder may not be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    found = sorted(files_below(folder), key=attrgetter("parts"))  # as paths sort, but faster
    for file in found:
        if not is_image(file) and file.is_symlink() and not file.exists():
            rank_zero_warn(f"{file} is a broken link, left out: did its folder move?")
    files = list(filter(is_image, found))
    if not files:
        holds = f"; {count(len(found), 'file')}, as {printable(found[0].name)}" if found else ""
        raise FileNotFoundError(
            f"There is no image below {folder}{holds} (looked for "
            f"{', '.join(sorted(IMAGE_SUFFIXES))})."
        )
    if others := [file for file in found if file.suffix.lower() in _OTHER_PICTURES]:
        rank_zero_warn(
            f"{count(len(others), 'file')} below {printable(folder)} left out, as "
            f"{printable(others[0].name)}: pictures in formats that are not read. Convert them to "
            "PNG or JPEG."
        )
    return files


def files_below(folder: Path) -> Iterator[Path]:
    """Yields the files below a folder. Follows links; leaves out hidden and system files.

    A link to one of its own parent folders would never end and is not followed.

    Raises:
        PermissionError: a folder may not be read.
    """
    above: dict[Path, frozenset[tuple[int, int]]] = {}  # the real parent folders of each
    for name, folders, files in os.walk(folder, followlinks=True, onerror=_stop):
        place = Path(name)
        status = place.stat()
        real, way = (status.st_dev, status.st_ino), above.pop(place, frozenset())
        if real in way:
            folders.clear()
            continue
        folders[:] = sorted(inner for inner in folders if not _is_hidden(inner))
        above |= {place / inner: way | {real} for inner in folders}
        yield from (place / file for file in files if not _is_hidden(file))


def folders_in(folder: Path) -> list[Path]:
    """Lists the folders directly inside a folder, without hidden and system folders."""
    _, inner, _ = next(os.walk(folder), ("", [], []))
    return [folder / name for name in sorted(inner) if not _is_hidden(name)]


def root_nearby(root: Path, fits: Callable[[Path], object], option: str) -> str:
    """Returns ` Did you mean OPTION …?` if the parent or a child of a wrong folder fits.

    Args:
        root: the wrong folder; it need not exist.
        fits: returns something true for the right folder.
        option: the option that `root` was given by.
    """
    found = None
    with suppress(OSError):  # a folder that may not be read
        found = next(filter(fits, (root.absolute().parent, *folders_in(root))), None)
    return f" Did you mean {option} {found}?" if found else ""


def part_of(folders: Iterable[Path], names: Iterable[str]) -> Path | None:
    """Returns the folder with the first of these names that exists, in upper or lower case."""
    there = {folder.name.lower(): folder for folder in folders}
    return next(filter(None, map(there.get, names)), None)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def _stop(error: OSError) -> NoReturn:
    raise error


def read_list(listing: Path, name: Callable[[str], str] = str) -> list[str]:
    """Reads names from a text file, one per line, in whatever encoding an editor saved it.

    Args:
        listing: UTF-8 or other bytes, with or without byte order mark; UTF-16 with one.
        name: extracts the name from a line that is not empty.

    Returns:
        Each name once; warns about repeated ones.

    Raises:
        ValueError: it is not a text file.
    """
    content = listing.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):  # what Windows calls Unicode
        text = content.decode("utf-16", "replace")
    else:
        text = content.decode("utf-8-sig", "surrogateescape")
    lines = text.splitlines()
    damaged = next((number for number, line in enumerate(lines, 1) if "\0" in line), None)
    if damaged:
        raise ValueError(
            f"{listing} is no list of names: line {damaged} holds a NUL byte. Save it as plain "
            "text, or download it again."
        )
    names = [name(line) for line in map(str.strip, lines) if line]
    single = list(dict.fromkeys(names))
    if repeated := len(names) - len(single):
        rank_zero_warn(f"{listing} repeats {repeated} of its names; each counts once.")
    return single


def by_stem(files: Iterable[Path], folder: Path) -> dict[str, list[Path]]:
    """Groups files by their path inside a folder, `composed` and without the suffix."""
    found: dict[str, list[Path]] = {}
    for file in files:
        stem = composed(file.relative_to(folder).with_suffix("").as_posix())
        found.setdefault(stem, []).append(file)
    return found


def places(images: Iterable[ImageItem]) -> set[ImageItem]:
    """Returns images with links in their folders resolved, so that each has one path only."""
    real = cache(Path.resolve)
    return {real(each.parent) / each.name if isinstance(each, Path) else each for each in images}


def composed(name: str) -> str:
    """Returns a name in Unicode's form C: macOS writes é as two characters, others as one."""
    return unicodedata.normalize("NFC", name)


def held_out(name: str, fraction: float) -> bool:
    """Whether the image of this name is held out from training.

    A hash of the name decides: adding or copying images never moves one to the other split.
    """
    return _place(name) < fraction


def parted(
    items: Iterable[Item], name: Callable[[Item], str], fraction: float
) -> tuple[list[Item], list[Item]]:
    """Splits items by `held_out` of their names, into the rest and the held-out fraction."""
    parts: tuple[list[Item], list[Item]] = ([], [])
    for item in items:
        parts[held_out(name(item), fraction)].append(item)
    return parts


def judging_place(file: Path, folder: Path) -> float:
    """Returns a hash of a path inside a folder, 0 to 1; files below the fraction form the test set.

    It differs from the hash of `held_out`, so that a share of the other files can be held out.
    """
    return _place(f"test/{file.relative_to(folder).as_posix()}")


def set_apart(
    files: Sequence[Path], folder: Path, fraction: float
) -> tuple[list[Path], list[Path]]:
    """Splits files by a hash of their paths inside a folder, into training and test files.

    There is at least one test file.

    Raises:
        ValueError: there are fewer than two files.
    """
    if len(files) < 2:
        raise ValueError(f"{folder} holds {count(len(files), 'image')}, expected at least two.")
    places = {file: judging_place(file, folder) for file in files}
    first = min(places, key=places.__getitem__)
    apart = {file for file, place in places.items() if place < fraction or file == first}
    return [file for file in files if file not in apart], [f for f in files if f in apart]


def _place(name: str) -> float:
    return int.from_bytes(hashlib.sha256(os.fsencode(composed(name))).digest()[:4]) / 2**32
