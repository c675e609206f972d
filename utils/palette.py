"""Colours of Pascal VOC masks."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

VOID = 255  # pixels that count for nothing
VOID_GREY = (190, 190, 190)


def voc_palette() -> NDArray[np.uint8]:
    """Returns the official 256 colours, `(256, 3)`: bits of the label spread over R, G and B."""
    labels = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for shift in range(8):
        for channel in range(3):
            bit = (labels >> (3 * shift + channel)) & 1
            colours[:, channel] |= (bit << (7 - shift)).astype(np.uint8)
    return colours


def label_image(labels: NDArray[np.uint8]) -> Image.Image:
    """Returns labels `(H, W)` as a palette image, as VOC stores them."""
    image = Image.fromarray(labels)  # putpalette turns L into P
    image.putpalette(voc_palette().ravel().tolist())
    return image


def coloured(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns labels `(H, W)` in VOC's colours, void grey, `(H, W, 3)`."""
    colours = voc_palette()
    colours[VOID] = VOID_GREY
    return colours[labels]


def hex_colour(colour: Iterable[int]) -> str:
    """Returns 0 … 255 red, green, blue as `#rrggbb`."""
    return "#" + "".join(f"{int(channel):02x}" for channel in colour)


def overlay(image: Image.Image, labels: NDArray[np.uint8], strength: float = 0.6) -> Image.Image:
    """Paints labels over an image; background stays as it is."""
    pixels = np.asarray(image).astype(np.float32)
    painted = (1 - strength) * pixels + strength * coloured(labels)
    return Image.fromarray(np.where(labels[..., None] > 0, painted, pixels).astype(np.uint8))
