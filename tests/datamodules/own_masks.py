"""Folders of images and masks as people have them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Labels = NDArray[np.uint8]
Encode = Callable[[Labels], Image.Image]

COLOURS = np.array([[40, 40, 40], [255, 128, 0], [0, 128, 255]], np.uint8)
HEX = ["#282828", "#ff8000", "#0080ff"]


def drawn(number: int, classes: int = 2) -> Labels:
    """A ground of 0 and a square of each other class, `(20, 24)`."""
    labels = np.zeros((20, 24), np.uint8)
    for label in range(1, classes):
        labels[4:12, 8 * label - 6 + number % 3 : 8 * label + number % 3] = label
    return labels


def grey(labels: Labels) -> Image.Image:
    return Image.fromarray(labels)


def times(factor: int, offset: int = 0, kind: type = np.uint8) -> Encode:
    return lambda labels: Image.fromarray((labels.astype(int) * factor + offset).astype(kind))


def bits(labels: Labels) -> Image.Image:
    return Image.fromarray(labels.astype(bool))


def coloured(labels: Labels) -> Image.Image:
    return Image.fromarray(COLOURS[labels])


def with_alpha(labels: Labels) -> Image.Image:
    return coloured(labels).convert("RGBA")


def grey_in_rgb(labels: Labels) -> Image.Image:
    return Image.fromarray(labels * 255).convert("RGB")


def reordered(labels: Labels) -> Image.Image:
    """A palette whose indices say nothing, as programs that reduce colours write it."""
    image = Image.fromarray(np.array([2, 1, 0], np.uint8)[labels])
    image.putpalette(COLOURS[[2, 1, 0]].ravel().tolist())
    return image


def folder(
    root: Path,
    encode: Encode,
    text: str | None = None,
    parts: tuple[str, ...] = ("train", "val"),
    count: int = 4,
    classes: int = 2,
    suffix: str = ".png",
) -> Path:
    """Writes images and masks, in folders inside those of the parts, and a list of classes."""
    rng = np.random.default_rng(0)
    for part in parts:
        for number in range(count):
            labels = drawn(number, classes)
            inside = Path(part) / f"deep{number % 2}" / f"{number:02d}"
            image = root / "images" / inside.with_suffix(".JPG" if number % 2 else ".webp")
            mask = root / "masks" / inside.with_suffix(suffix)
            for file in (image, mask):
                file.parent.mkdir(parents=True, exist_ok=True)
            noise = rng.integers(0, 60, (*labels.shape, 3))
            Image.fromarray((90 * labels[..., None] + noise).astype(np.uint8)).save(image)
            encode(labels).save(mask)
    if text is not None:
        (root / "classes.yaml").write_text(text)
    return root
