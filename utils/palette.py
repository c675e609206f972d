"""Colours of Pascal VOC masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

VOID = 255  # pixels that count for nothing


def voc_palette() -> NDArray[np.uint8]:
    """Returns the official 256 colours, `(256, 3)`: bits of the label spread over R, G and B."""
    labels = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for shift in range(8):
        for channel in range(3):
            bit = (labels >> (3 * shift + channel)) & 1
            colours[:, channel] |= (bit << (7 - shift)).astype(np.uint8)
    return colours
