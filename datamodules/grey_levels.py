"""Which grey level is white, and which levels a file stores where Pillow rescales them.

To 8 bits: 16-bit grey becomes v / 257, as 65535 = 255 * 257; a 12-bit TIFF v / 16.06; a PGM
v * 255 / (the maximum in its header).
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
# Pillow scales the largest value of a PGM, or of 2 or 4 bits, to this, by the mode of the image.
_PILLOWS_WHITE = {"L": 2**8 - 1, "I": 2**16 - 1}
_FEW_BITS = {"L;2": 3, "L;4": 15}  # largest levels, by Pillow's raw mode
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_WITHOUT_WHITE = {"I": "signed or 32-bit integers", "F": "floating-point numbers"}


def largest_level(image: Image.Image) -> int | None:
    """Returns the largest level a file can store if Pillow rescales that to white, else None.

    Args:
        image: not loaded yet.
    """
    return _largest_of_pgm(image) or _largest_of_few_bits(image)


def _largest_of_pgm(image: Image.Image) -> int | None:
    """Returns the largest value in the header of a PGM; None for other formats.

    Args:
        image: not loaded yet: Pillow keeps this number among the arguments of its decoder only.
    """
    if isinstance(image, PpmImageFile) and image.mode in _PILLOWS_WHITE:
        tile: Any = image.tile[0]
        return None if tile.codec_name == "raw" else int(tile.args[-1])
    return None


def _white_of_pgm(image: Image.Image) -> int | None:
    return _PILLOWS_WHITE.get(image.mode) if isinstance(image, PpmImageFile) else None


def _largest_of_few_bits(image: Image.Image) -> int | None:
    """Returns the largest grey level of 2 or 4 bits; None for other depths.

    Args:
        image: not loaded yet: only the arguments of its decoder tell, its mode is that of 8 bits.
    """
    return next((_FEW_BITS[layout] for layout in _layouts(image) if layout in _FEW_BITS), None)


def _layouts(image: Image.Image) -> Iterator[Any]:
    """Yields Pillow's raw modes: its names for how pixels are stored."""
    tiles: list[Any] = getattr(image, "tile", [])
    for tile in tiles:
        yield tile.args if isinstance(tile.args, str) else next(iter(tile.args or ()), None)


def is_cut_to_8_bits(image: Image.Image) -> bool:
    """Whether Pillow keeps only the upper 8 of 16 bits, as for colours and grey with alpha.

    Args:
        image: not loaded yet.
    """
    return len(image.getbands()) > 1 and any(map(_of_lower_bytes, _layouts(image)))


def lower_bytes(image: Image.Image) -> NDArray[np.uint8]:
    """Returns the lower 8 bits, which Pillow drops, of colours or grey, `(H, W, C)`.

    Args:
        image: fulfils `is_cut_to_8_bits`; not loaded yet.
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
    """Returns the raw mode for the same 16 bits in the other byte order: upper 8 are the lower."""
    kind, _, order = str(layout).partition(";16")
    if kind == "LA":  # has one byte order only: read all bytes as channels
        return "RGBA" if order else None
    return f"{kind};16{_OTHER_ORDER[order]}" if order in _OTHER_ORDER else None


def unstretched(image: Image.Image, largest: int) -> Image.Image:
    """Returns the stored levels of an image whose `largest_level` Pillow rescaled to white.

    Otherwise labels 0 to 3 would be 0, 85, 170 and 255, and a label's value would depend on the
    largest value in the header of its mask.
    """
    values = np.rint(np.asarray(image) * (largest / _PILLOWS_WHITE[image.mode]))
    return Image.fromarray(values.astype(np.int32 if image.mode == "I" else np.uint8))


def in_rgb(image: Image.Image) -> Image.Image:
    """Returns a loaded image as 8-bit RGB.

    Raises:
        ValueError: its format does not define which level is white.
    """
    white = _white_of_pgm(image)
    if image.mode in _WITHOUT_WHITE and white is None:
        raise ValueError(
            f"its pixels are {_WITHOUT_WHITE[image.mode]}, for which white is not defined: "
            "save it with 8 or 16 bits a pixel"
        )
    if image.mode.startswith("I"):
        white, negative = white or 2**16 - 1, False
        if isinstance(image, TiffImageFile):  # may be 12 bits, or a negative
            white = 2 ** image.tag_v2[BITSPERSAMPLE][0] - 1
            negative = image.tag_v2[PHOTOMETRIC_INTERPRETATION] == _WHITE_IS_ZERO
        grey = np.rint(np.asarray(image) / np.float32(white / 255)).astype(np.uint8)
        image = Image.fromarray(255 - grey if negative else grey)
    return image if image.mode == "RGB" else image.convert("RGB")
