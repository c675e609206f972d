"""The one place where image files are decoded: turned upright, in 8 bits, of bounded size.

Orientation is EXIF 2.32, tag 274.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import floor, log2
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from datamodules.grey_levels import (
    in_rgb,
    is_cut_to_8_bits,
    largest_level,
    lower_bytes,
    unstretched,
)
from utils.text import printable

# 100 MB in RGB; a larger picture is reduced by 2, a JPEG by up to 4.
MAX_PIXELS = 2**25
# Longer side over shorter. Beyond 17, random crops (at least 8 % of the area, up to 4:3) see only
# the middle. And protocols resize the shorter side: a thin strip would fill gigabytes.
MAX_ASPECT = 100
# Resizing from twice the final size is as good as from the full size (`Image.thumbnail`).
_GAP = 2.0
# Pillow's own limit would refuse JPEGs before they can be reduced; ours is `MAX_PIXELS`.
Image.MAX_IMAGE_PIXELS = None
# Pillow refuses a PNG with a colour profile or text of more than 1 MB; here it may be as large as
# all texts of a file together, 64 MB.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY

# How stored pixels are turned for display. From 5 on, width and height are swapped.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(OSError):
    """An image cannot be decoded. The message names the file, and the reason in brackets."""

    def __init__(self, file: Path, reason: str) -> None:
        super().__init__(f"{printable(file)} ({reason})")


@dataclass(frozen=True)
class StoredImage:
    """An image inside a larger file: a unique name and the pixels `(H, W, 3)`."""

    name: str
    pixels: NDArray[np.uint8] = field(compare=False, repr=False)

    def __str__(self) -> str:
        """The name."""
        return self.name


ImageItem = Path | StoredImage


class Picture(NamedTuple):
    """An image as it is displayed.

    Attributes:
        image: in RGB.
        size: width and height in pixels; those of `image`, unless it had to be reduced.
        orientation: the EXIF orientation it is stored in, 1 to 8.
    """

    image: Image.Image
    size: tuple[int, int]
    orientation: int


class Opened:
    """An image of which only the header has been read.

    Args:
        name: the file, for errors.
        image: as Pillow opens it.

    Attributes:
        size: width and height as displayed, in pixels.
    """

    def __init__(self, name: Path, image: Image.Image) -> None:
        self._name = name
        self._image = image
        # Before the orientation, for which a PNG is decoded.
        self._reduction = _reduction(image)
        self._orientation = _orientation(image)
        # For a TIFF, Pillow gives the size as displayed, before it has turned the pixels.
        swapped = swaps_sides(self._orientation) and not isinstance(image, TiffImageFile)
        self.size = image.size[::-1] if swapped else image.size

    def decode(self, scale: float = 1.0) -> Picture:
        """Decodes the pixels.

        Args:
            scale: size the picture will be resized to, over its own size. A JPEG is decoded reduced
                by 2, 4 or 8, which is faster, as long as it stays twice that size.

        Raises:
            UnreadableImageError: decoding fails; the picture is far too large or too long; its
                format does not define which level is white.
        """
        with _naming(self._name):
            stored, factor = self._image.size, self._reduction
            if max(stored) > MAX_ASPECT * min(stored):
                raise ValueError(
                    f"{self.size[0]} x {self.size[1]} px, more than {MAX_ASPECT} times as long as "
                    "wide: cut it into pieces"
                )
            if isinstance(self._image, JpegImageFile):
                enough = 2 ** floor(log2(1 / (_GAP * scale)))
                factor = max(factor, min(enough, 8))
            if factor > 1:  # affects JPEGs only
                self._image.draft(None, (max(1, stored[0] // factor), max(1, stored[1] // factor)))
            # Not by OpenCV, though it is a tenth faster: it fills with grey what is damaged, and
            # libjpeg prints its warnings.
            self._image.load()
            image = in_rgb(self._image)
            if factor > 1 and image.size == stored:
                image = image.reduce(factor)
            remaining = _orientation(self._image)  # Pillow turns TIFFs while loading them
            return Picture(
                image if remaining == 1 else turned(image, remaining), self.size, self._orientation
            )


@contextmanager
def opened(item: ImageItem) -> Iterator[Opened]:
    """Opens an image, so that its size is known before it is decoded.

    Raises:
        UnreadableImageError: it cannot be opened.
    """
    if isinstance(item, StoredImage):
        yield Opened(Path(item.name), Image.fromarray(item.pixels))
        return
    with ExitStack() as stack:
        with _naming(item):  # errors of the caller do not name it
            found = Opened(item, stack.enter_context(_image_of(item)))
        yield found


def read_rgb(item: ImageItem) -> Image.Image:
    """Decodes an image as it is displayed, in RGB.

    Raises:
        UnreadableImageError: see `Opened.decode`.
    """
    return read_picture(item).image


def read_picture(item: ImageItem) -> Picture:
    """Decodes an image, with the size and orientation of its file.

    Raises:
        UnreadableImageError: see `Opened.decode`.
    """
    with opened(item) as found:
        return found.decode()


def read_values(file: Path) -> Image.Image:
    """Decodes a file of labels rather than colours, a mask: as displayed, in its own mode.

    Raises:
        UnreadableImageError: it cannot be decoded.
    """
    with _naming(file), _image_of(file) as image:
        _reduction(image)  # masks are never reduced, only refused
        largest, is_cut = largest_level(image), is_cut_to_8_bits(image)
        image.load()
        # Labels in the lower 8 bits would all become 0; colours differ in their upper 8 bits.
        if is_cut and not np.asarray(image)[..., :3].any() and _lower_bytes(file).any():
            raise ValueError(
                "16 bits a channel, of which only the upper 8 are read, and these are all 0: save "
                "it with 8 bits a channel, or as 16-bit grey"
            )
        values = image if largest is None else unstretched(image, largest)
        return turned(values, _orientation(image))


def _lower_bytes(file: Path) -> NDArray[np.uint8]:
    with _image_of(file) as image:
        return lower_bytes(image)


def shorter_side(item: ImageItem) -> int | None:
    """Returns the shorter side of an image in pixels, None when it cannot be read."""
    try:
        with opened(item) as found:
            return min(found.size)
    except UnreadableImageError:
        return None


def holds_several(file: Path) -> bool:
    """Whether a file holds more pictures than the first, which is the one that is read.

    Raises:
        UnreadableImageError: it cannot be opened.
    """
    with _naming(file), _image_of(file) as image:
        return bool(getattr(image, "is_animated", False))  # `n_frames` reads all of a GIF


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Returns a copy of stored pixels as they are displayed."""
    turn = _TURNS.get(orientation)
    return image.copy() if turn is None else image.transpose(turn)


def swaps_sides(orientation: int) -> bool:
    """Whether the width as displayed is the height as stored."""
    return orientation >= 5


@contextmanager
def _image_of(file: Path) -> Iterator[Image.Image]:
    if not file.is_file() and file.exists():  # reading a pipe would block
        raise ValueError("no file, but a folder, pipe or device")
    # From a stream: given a path, Pillow maps grey TIFFs into memory and turns them wrongly (13.0).
    with file.open("rb") as stream, Image.open(stream) as image:
        yield image


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError as error:
        raise UnreadableImageError(file, "not a picture in a known format") from error
    except Exception as error:
        # Pillow's parsers may raise anything.
        raise UnreadableImageError(file, str(error) or type(error).__name__) from error


def _reduction(image: Image.Image) -> int:
    """Returns by how much the sides have to be divided: 1, 2 or 4."""
    pixels, factor = image.width * image.height, 1
    while pixels > MAX_PIXELS * factor**2:
        factor *= 2
    largest = 4 if isinstance(image, JpegImageFile) else 2
    if factor > largest:
        raise ValueError(
            f"{image.width} x {image.height} px are more than the "
            f"{MAX_PIXELS * largest**2 / 1e6:.0f} million that are read: make it smaller"
        )
    return factor


def _orientation(image: Image.Image) -> int:
    if isinstance(image, PngImageFile) and "exif" not in image.info:
        image.load()  # EXIF may come last; outside of `try`, as damaged pixels are an error
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF; the pixels may be intact
        return 1
    return found if found in _TURNS else 1
