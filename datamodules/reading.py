"""The one place where image files are decoded: as they are displayed, in 8 bits, within bounds.

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
from datamodules.transforms.operators import Pixels, cv2
from utils.text import printable

# Pixels that are kept, 100 MB in RGB; a larger picture is reduced by 2 or, JPEG, 4.
MAX_PIXELS = 2**25
# Longer side over shorter. Beyond 17 random crops (8 % of the area and more, to 4:3) see only the
# middle; resized by its shorter side, as protocols do, a thread of pixels fills gigabytes.
MAX_ASPECT = 100
# Resized from twice the size a picture is as good as from its whole size (`Image.thumbnail`).
_GAP = 2.0
_END_OF_JPEG = b"\xff\xd9"  # ITU-T T.81, B.1.1.3
# Pillow refuses before a JPEG can be reduced while it is decoded: the limit is here instead.
Image.MAX_IMAGE_PIXELS = None
# A colour profile or a program's notes of 1 MB would make a PNG unreadable; of all texts of a file
# together it reads 64 MB.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY

# How stored pixels are turned to be displayed. From 5 on width and height change places.
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
    """An image that cannot be decoded. The message names the file, and says why in brackets."""

    def __init__(self, file: Path, reason: str) -> None:
        super().__init__(f"{printable(file)} ({reason})")


@dataclass(frozen=True)
class StoredImage:
    """An image inside a larger file: its name, by which it is known, and its pixels `(H, W, 3)`."""

    name: str
    pixels: Pixels = field(compare=False, repr=False)

    def __str__(self) -> str:
        """The name."""
        return self.name


ImageItem = Path | StoredImage


class Picture(NamedTuple):
    """An image as it is displayed.

    Attributes:
        pixels: in RGB, `(H, W, 3)`.
        size: width and height in pixels; those of `pixels`, unless it had to be reduced.
        orientation: the EXIF orientation it is stored in, 1 to 8.
    """

    pixels: Pixels
    size: tuple[int, int]
    orientation: int

    @property
    def image(self) -> Image.Image:
        """The pixels as an image of Pillow's: a copy."""
        return Image.fromarray(self.pixels)


class Opened:
    """An image whose header has been read, and whose pixels have not.

    Args:
        name: file, to be named in errors.
        image: as Pillow opens it.

    Attributes:
        size: width and height as displayed, in pixels.
    """

    def __init__(self, name: Path, image: Image.Image) -> None:
        self._name = name
        self._image = image
        # Before its orientation is looked for, for which a PNG is decoded.
        self._reduction = _reduction(image)
        self._orientation = _orientation(image)
        # A TIFF has the size that it will have once Pillow has turned it.
        swapped = swaps_sides(self._orientation) and not isinstance(image, TiffImageFile)
        self.size = image.size[::-1] if swapped else image.size

    def decode(self, scale: float = 1.0) -> Picture:
        """Decodes the pixels.

        Args:
            scale: what the picture is going to be resized to, over its size. A JPEG comes reduced
                by 2, 4 or 8 where it stays twice as large as that: decoding it takes less time.

        Raises:
            UnreadableImageError: that fails; it is far too large or too long; no file says what its
                white is.
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
            pixels = _whole_jpeg(self._image) if factor == self._orientation == 1 else None
            if pixels is None:
                pixels = self._by_pillow(factor)
            return Picture(pixels, self.size, self._orientation)

    def _by_pillow(self, factor: int) -> Pixels:
        stored = self._image.size
        if factor > 1:  # nothing happens to what is no JPEG
            self._image.draft(None, (max(1, stored[0] // factor), max(1, stored[1] // factor)))
        self._image.load()
        image = in_rgb(self._image)
        if factor > 1 and image.size == stored:
            image = image.reduce(factor)
        remaining = _orientation(self._image)  # Pillow turns TIFFs while loading them
        return np.asarray(image if remaining == 1 else turned(image, remaining))


@contextmanager
def opened(item: ImageItem) -> Iterator[Opened]:
    """Opens an image: its size is known before it is decoded.

    Raises:
        UnreadableImageError: that fails.
    """
    if isinstance(item, StoredImage):
        yield Opened(Path(item.name), Image.fromarray(item.pixels))
        return
    with ExitStack() as stack:
        with _naming(item):  # but not what is done to the opened image
            found = Opened(item, stack.enter_context(_image_of(item)))
        yield found


def read_rgb(item: ImageItem) -> Image.Image:
    """Decodes an image as it is displayed, in RGB.

    Raises:
        UnreadableImageError: that fails.
    """
    return read_picture(item).image


def read_picture(item: ImageItem) -> Picture:
    """Decodes an image, and says what of it is not to be seen.

    Raises:
        UnreadableImageError: see `Opened.decode`.
    """
    with opened(item) as found:
        return found.decode()


def read_values(file: Path) -> Image.Image:
    """Decodes a file whose values are no colours, such as a mask: as displayed, in its own mode.

    Raises:
        UnreadableImageError: that fails.
    """
    with _naming(file), _image_of(file) as image:
        _reduction(image)  # never reduced, but not larger either
        largest, is_cut = largest_level(image), is_cut_to_8_bits(image)
        image.load()
        # Labels, of which nothing is left; colours of 16 bits are told apart by their upper 8.
        if is_cut and not np.asarray(image)[..., :3].any() and _lower_bytes(file).any():
            raise ValueError(
                "16 bits a channel, of which the upper 8 are read, and those hold nothing: save it "
                "with 8 bits a channel, or as grey of 16"
            )
        values = image if largest is None else unstretched(image, largest)
        return turned(values, _orientation(image))


def _lower_bytes(file: Path) -> Pixels:
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
    if not file.is_file() and file.exists():  # a pipe would be waited for
        raise ValueError("no file, but a folder, pipe or device")
    # From a stream: what Pillow maps into memory (grey TIFFs) it turns wrongly, as of 13.0.
    with file.open("rb") as stream, Image.open(stream) as image:
        yield image


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError as error:
        raise UnreadableImageError(file, "not a picture in a known format") from error
    except Exception as error:
        # Pillow's formats raise whatever their parsing ran into.
        raise UnreadableImageError(file, str(error) or type(error).__name__) from error


def _whole_jpeg(image: Image.Image) -> Pixels | None:
    """Decodes a JPEG in colour by OpenCV, which takes four fifths of Pillow's time.

    Both use the same library in the same way; here nothing has to be unpacked from 4 bytes a pixel.

    Returns:
        What Pillow would give. None without OpenCV, of other images, and of what does not end as a
        JPEG does: Pillow refuses a file that was cut, OpenCV leaves the rest grey.
    """
    if not (cv2 and isinstance(image, JpegImageFile) and image.mode == "RGB" and image.fp):
        return None
    image.fp.seek(0)
    content = image.fp.read()
    if not content.endswith(_END_OF_JPEG):
        return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    pixels: Pixels | None = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    return pixels  # None of what Pillow may still read, or says why not


def _reduction(image: Image.Image) -> int:
    """Returns 1, 2 or 4: what the sides have to be divided by."""
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
        image.load()  # `getexif` would, as it may come last; damaged pixels are no damaged EXIF
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF, as of `_opened`; the pixels may be well
        return 1
    return found if found in _TURNS else 1
