"""Warnings about images before training, from a look at some of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn

from datamodules.listing import JPEG_SUFFIXES
from datamodules.reading import ImageItem, UnreadableImageError, holds_several, read_rgb
from utils.spacing import evenly
from utils.text import count, printable

_DECODED, _OPENED = 8, 100  # at most, of all images
_DARK = 16  # of 255: looks black; 12-bit grey stored in 16 bits reaches just this


def warn_of_darkness(items: Sequence[ImageItem]) -> None:
    """Warns if no pixel of some example images is brighter than black."""
    brightest = []
    for item in evenly(items, _DECODED):
        with suppress(UnreadableImageError):  # named elsewhere
            brightest.append(int(np.asarray(read_rgb(item)).max()))
            if brightest[-1] > _DARK:  # most often the first
                return
    if brightest:
        rank_zero_warn(
            f"The images are nearly black: of {count(len(brightest), 'example')} no pixel is above "
            f"{max(brightest)} of 255. 16-bit grey is read as v / 257: rescale it if its white is "
            "less than 65535 (cameras often store 4095). Or are these masks?"
        )


def warn_of_several(items: Sequence[ImageItem], what: str) -> None:
    """Warns if files hold several pictures: pages of a TIFF, or frames.

    JPEGs do not count: phones store a preview or a gain map beside the picture.

    Args:
        items: images or masks.
        what: their name in the message.
    """
    files = [each for each in items if isinstance(each, Path)]
    chosen = evenly([file for file in files if file.suffix.lower() not in JPEG_SUFFIXES], _OPENED)
    found = []
    for file in chosen:
        with suppress(UnreadableImageError):
            found += [file] * holds_several(file)
    if found:
        rank_zero_warn(
            f"Several pictures are in {len(found)} of {count(len(chosen), 'file')} of {what} that "
            f"were looked at, as {printable(found[0])}. The first of each is used: to use them "
            "all, save every picture as a file of its own."
        )
