"""Colours of labels (those of Pascal VOC) and of padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

VOID = 255  # pixels that count for nothing
BACKGROUND = "background"  # name of the class of pixels without an object, in upper or lower case
VOID_GREY = (190, 190, 190)
# Padding of images: ImageNet's mean, close to 0 after a backbone's normalisation.
MEAN_COLOUR = (124, 116, 104)
# Magenta first, which is not among VOC's colours.
_APART = 150  # least sum of differences of the three channels to distinguish colours
_LOUD = ((255, 0, 255), (255, 96, 0), (0, 255, 255), (200, 255, 0), (212, 18, 0))


def voc_palette() -> NDArray[np.uint8]:
    """Returns the official 256 colours, `(256, 3)`: bits of the label spread over R, G and B."""
    labels = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for shift in range(8):
        for channel in range(3):
            bit = (labels >> (3 * shift + channel)) & 1
            colours[:, channel] |= (bit << (7 - shift)).astype(np.uint8)
    return colours


def has_background(classes: Sequence[str]) -> bool:
    """Returns whether label 0 of a data set is the background."""
    return bool(classes) and classes[0].lower() == BACKGROUND


def palette(classes: Sequence[str]) -> NDArray[np.uint8]:
    """Returns a colour for every label of a data set, void grey, `(256, 3)`.

    They are VOC's. Without a background, which is black in VOC, the first class gets the first
    other colour.
    """
    colours = voc_palette()
    if not has_background(classes):
        colours = np.roll(colours, -1, axis=0)
    colours[VOID] = VOID_GREY
    return colours


def with_colours(colours: NDArray[np.uint8], own: Sequence[int]) -> NDArray[np.uint8]:
    """Returns a copy in which the first labels have the colours `own`, given as 0xrrggbb."""
    changed = colours.copy()
    for label, code in enumerate(own):
        changed[label] = code >> 16, code >> 8 & 255, code & 255
    return changed


def unlike(colours: NDArray[np.uint8]) -> tuple[int, int, int]:
    """Returns a bright colour that is easy to distinguish from `colours`, `(n, 3)`.

    Magenta if possible; if all candidates are close to a colour, the most distant one.
    """
    others = colours.reshape(-1, 3).astype(int)
    distance = {loud: int(np.abs(others - loud).sum(1).min(initial=3 * 255)) for loud in _LOUD}
    apart = [loud for loud in _LOUD if distance[loud] >= _APART]
    return apart[0] if apart else max(_LOUD, key=distance.__getitem__)


def label_image(labels: NDArray[np.uint8], colours: NDArray[np.uint8]) -> Image.Image:
    """Returns labels `(H, W)` as a palette image, like VOC's masks."""
    image = Image.fromarray(labels)  # putpalette turns L into P
    image.putpalette(colours.ravel().tolist())
    return image


def hex_colour(colour: Iterable[int]) -> str:
    """Returns 0 … 255 red, green, blue as `#rrggbb`."""
    return "#" + "".join(f"{int(channel):02x}" for channel in colour)


def overlay(
    image: Image.Image,
    labels: NDArray[np.uint8],
    colours: NDArray[np.uint8],
    strength: float = 0.6,
) -> Image.Image:
    """Paints labels over an image; leaves out black, the background."""
    pixels, paint = np.asarray(image).astype(np.float32), colours[labels]
    painted = (1 - strength) * pixels + strength * paint
    shown = np.where(paint.any(-1, keepdims=True), painted, pixels)
    return Image.fromarray(shown.astype(np.uint8))
