"""What levels of grey mean: which is white, and what a file stores where Pillow stretches it.

Grey of 16 bits becomes v / 257, as 65535 = 255 * 257; of a TIFF of 12 bits v / 16.06; of a PGM
v * 255 over its own white.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

_WHITE_IS_ZERO = 0  # of TIFF 6.0, tag 262
# What Pillow makes of the largest value of a PGM, or of few bits, by the mode it is read in.
_PILLOWS_WHITE = {"L": 2**8 - 1, "I": 2**16 - 1}
_FEW_BITS = {"L;2": 3, "L;4": 15}  # largest levels, by Pillow's names of what is stored
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_WITHOUT_WHITE = {"I": "signed or 32-bit integers", "F": "floating-point numbers"}


def largest_level(image: Image.Image) -> int | None:
    """Returns the largest level that a file can store, where Pillow makes it white; else None.

    Args:
        image: not loaded yet.
    """
    return _largest_of_pgm(image) or _largest_of_few_bits(image)


def _largest_of_pgm(image: Image.Image) -> int | None:
    """Returns the largest value that the header of a PGM names; None of others.

    Args:
        image: not loaded yet. By its decoder, as Pillow keeps that number for it alone.
    """
    if isinstance(image, PpmImageFile) and image.mode in _PILLOWS_WHITE:
        tile: Any = image.tile[0]
        return None if tile.codec_name == "raw" else int(tile.args[-1])
    return None


def _white_of_pgm(image: Image.Image) -> int | None:
    return _PILLOWS_WHITE.get(image.mode) if isinstance(image, PpmImageFile) else None


def _largest_of_few_bits(image: Image.Image) -> int | None:
    """Returns the largest grey level that 2 or 4 bits can be; None of other depths.

    Args:
        image: not loaded yet. By how it will be decoded: its mode is that of 8 bits.
    """
    return next((_FEW_BITS[layout] for layout in _layouts(image) if layout in _FEW_BITS), None)


def _layouts(image: Image.Image) -> Iterator[Any]:
    """Yields Pillow's names of what is stored."""
    tiles: list[Any] = getattr(image, "tile", [])
    for tile in tiles:
        yield tile.args if isinstance(tile.args, str) else next(iter(tile.args or ()), None)


def is_cut_to_8_bits(image: Image.Image) -> bool:
    """Whether Pillow reads the upper 8 of 16 bits: it does so of colours, and of grey with alpha.

    Args:
        image: not loaded yet.
    """
    return len(image.getbands()) > 1 and any(map(_of_lower_bytes, _layouts(image)))


def lower_bytes(image: Image.Image) -> NDArray[np.uint8]:
    """Returns the 8 bits that are cut away, of colours or of grey, `(H, W, C)`.

    Args:
        image: one that `is_cut_to_8_bits`, not loaded yet.
    """
    tiles: Any = image
    of_grey = any(str(layout).startswith("LA") for layout in _layouts(image))
    for number, tile in enumerate(tiles.tile):
        plain = isinstance(tile.args, str)
        layout, *rest = (tile.args,) if plain else tile.args
        layout = _of_lower_bytes(layout)
        tiles.tile[number] = tile._replace(args=layout if plain else (layout, *rest))
    return np.asarray(image)[..., slice(1, 2) if of_grey else slice(3)]


def _of_lower_bytes(layout: Any) -> str | None:
    """Returns Pillow's name of the same numbers of 16 bits with their bytes in the other order."""
    kind, _, order = str(layout).partition(";16")
    if kind == "LA":  # there is no other order: all bytes, as channels
        return "RGBA" if order else None
    return f"{kind};16{_OTHER_ORDER[order]}" if order in _OTHER_ORDER else None


def unstretched(image: Image.Image, largest: int) -> Image.Image:
    """Returns the levels that a file stores, of an image whose `largest_level` Pillow made white.

    0 to 3 would be 0, 85, 170 and 255, and the same label another value in each mask whose header
    names its own largest one.
    """
    values = np.rint(np.asarray(image) * (largest / _PILLOWS_WHITE[image.mode]))
    return Image.fromarray(values.astype(np.int32 if image.mode == "I" else np.uint8))


def in_rgb(image: Image.Image) -> Image.Image:
    """Returns a loaded image in RGB, of 8 bits.

    Raises:
        ValueError: nothing says which of its levels is white.
    """
    white = _white_of_pgm(image)
    if image.mode in _WITHOUT_WHITE and white is None:
        raise ValueError(
            f"its pixels are {_WITHOUT_WHITE[image.mode]}, of which no rule says what is white: "
            "save it with 8 or 16 bits a pixel"
        )
    if image.mode.startswith("I"):
        white, negative = white or 2**16 - 1, False
        if isinstance(image, TiffImageFile):  # 12 bits may be stored, and negatives
            white = 2 ** image.tag_v2[BITSPERSAMPLE][0] - 1
            negative = image.tag_v2[PHOTOMETRIC_INTERPRETATION] == _WHITE_IS_ZERO
        grey = np.rint(np.asarray(image) / np.float32(white / 255)).astype(np.uint8)
        image = Image.fromarray(255 - grey if negative else grey)
    return image if image.mode == "RGB" else image.convert("RGB")
