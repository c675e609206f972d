"""Finds what `--images` names, in folders, files and patterns: images and, with OpenCV, videos."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from datamodules.listing import IMAGE_SUFFIXES, files_below, is_image
from datamodules.reading import Picture, UnreadableImageError, read_picture
from utils.imports import is_installed
from utils.text import count

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"})


class Found(NamedTuple):
    """The files found.

    Attributes:
        root: the folder that contains all of them.
        name: for all of them together.
        files: images, and videos if OpenCV is installed.
        others: files that are neither.
    """

    root: Path
    name: str
    files: list[Path]
    others: list[Path]

    def expected(self) -> int:
        """Returns the number of images and frames; videos only declare theirs."""
        return sum(1 if is_image(file) else _length(file) for file in self.files)

    def pictures(self, unreadable: list[str]) -> Iterator[tuple[Path, Picture]]:
        """Yields every image and every frame, by its path below the root.

        Args:
            unreadable: gets the files that could not be read, with the reason.
        """
        for file in self.files:
            name = file.relative_to(self.root)
            try:
                if is_image(file):
                    yield name, read_picture(file)
                else:
                    frames = enumerate(_frames(file), start=1)
                    yield from ((name / f"frame-{at:06d}", frame) for at, frame in frames)
            except UnreadableImageError as error:
                unreadable.append(str(error))


def find_pictures(places: Sequence[str], run: Path) -> Found:
    """Lists the images at places, and the other files; hidden files are left out of both.

    Args:
        places: folders, searched at any depth, files, or patterns such as `photos/**/*.jpg`.
        run: folder of the run, whose own pictures are left out.

    Raises:
        FileNotFoundError: there is nothing at one of the places.
        ValueError: there are files, but no images.
    """
    roots, listed = zip(*map(_at, places), strict=True)
    by_place = (_without(run, *each) for each in zip(roots, listed, strict=True))
    found = list(dict.fromkeys(file for files in by_place for file in files))
    files = [file for file in found if is_image(file) or _is_video(file)]
    if not files:
        videos = "" if is_installed("cv2") else "; videos need pip install opencv-python-headless"
        raise ValueError(
            f"--images {' '.join(places)}: none of {count(len(found), 'file')} is an image "
            f"({', '.join(sorted(IMAGE_SUFFIXES))}{videos})."
        )
    root = Path(os.path.commonpath(roots))
    only_file = len(places) == 1 and Path(places[0]).is_file()
    name = Path(places[0]).stem if only_file else root.resolve().name
    known = set(files)
    return Found(root, name or "images", files, [file for file in found if file not in known])


def _at(place: str) -> tuple[Path, list[Path]]:
    """Returns the folder that a place is, or lies in, and the files there."""
    # `..` would lead out of the folder that results are written to, so it is resolved, as after a
    # link it means the folder above the link's target.
    parts = Path(place).absolute().parts
    last = max((number for number, part in enumerate(parts, start=1) if part == ".."), default=0)
    path = Path(*parts[:last]).resolve().joinpath(*parts[last:])
    if path.is_dir():
        return path, sorted(files_below(path))
    if path.exists():
        return path.parent, [path]
    if not glob.has_magic(place):
        raise FileNotFoundError(f"--images {place}: there is no such file or folder.")
    matched = [Path(each) for each in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
    if not matched:
        raise FileNotFoundError(f"--images {place}: nothing matches this pattern.")
    plain = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)
    files = [file for each in matched for file in (files_below(each) if each.is_dir() else [each])]
    return Path(*plain), sorted(dict.fromkeys(files))


def _without(run: Path, root: Path, files: list[Path]) -> list[Path]:
    own, place = run.resolve(), root.resolve()
    if not own.is_relative_to(place):
        return files
    inside = root / own.relative_to(place)
    return [file for file in files if not file.is_relative_to(inside)]


def _is_video(file: Path) -> bool:
    return file.suffix.lower() in VIDEO_SUFFIXES and is_installed("cv2")


def _length(file: Path) -> int:
    import cv2

    capture = cv2.VideoCapture(str(file))
    try:
        return max(1, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    finally:
        capture.release()


def _frames(file: Path) -> Iterator[Picture]:
    import cv2

    capture = cv2.VideoCapture(str(file))
    read = 0
    try:
        while True:
            there, frame = capture.read()  # (H, W, 3) uint8, blue first
            if not there:
                break
            read += 1
            image = Image.fromarray(np.ascontiguousarray(frame[..., ::-1]))
            yield Picture(image, image.size, 1)
    finally:
        capture.release()
    if not read:
        raise UnreadableImageError(file, "no video that OpenCV can read")
