"""A generated stand-in for Pascal VOC: textured shapes on textured ground, in VOC's layout.

Shape and texture tell the classes apart, colour does not, objects occlude each other, and masks
have a void border, so that whatever works on VOC can be tried here first, without a download.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from datamodules.base import MaskedSource
from datamodules.voc import voc_files, voc_pairs
from utils.palette import VOID, voc_palette

Field = NDArray[Any]

CLASSES = (
    "background",
    "disc",
    "square",
    "triangle",
    "star",
    "ring",
    "cross",
    "diamond",
    "crescent",
)
NUM_TRAIN, NUM_VAL = 512, 128

# One outline a class: from object coordinates to inside or not.
_OUTLINES: tuple[Callable[[Field, Field], Field], ...] = (
    lambda u, v: u**2 + v**2 < 1,
    lambda u, v: np.maximum(abs(u), abs(v)) < 0.85,
    lambda u, v: (v < 0.7) & (v > 1.9 * abs(u) - 1),
    lambda u, v: np.hypot(u, v) < 0.65 + 0.35 * np.cos(5 * np.arctan2(v, u)),
    lambda u, v: (np.hypot(u, v) < 1) & (np.hypot(u, v) > 0.5),
    lambda u, v: (np.minimum(abs(u), abs(v)) < 0.33) & (np.maximum(abs(u), abs(v)) < 1),
    lambda u, v: abs(u) + abs(v) < 1,
    lambda u, v: (np.hypot(u, v) < 1) & (np.hypot(u - 0.5, v) > 0.75),
)
# One texture a class, in the same coordinates: a field in 0 … 1 between two random colours.
_TEXTURES: tuple[Callable[[Field, Field], Field], ...] = (
    lambda u, v: 0.5 + 0.5 * np.sign(np.sin(9 * u)),
    lambda u, v: 0.5 + 0.5 * np.sign(np.sin(7 * u) * np.sin(7 * v)),
    lambda u, v: (np.sin(11 * u) * np.sin(11 * v) > 0.4) * 1.0,
    lambda u, v: 0.5 + 0.5 * np.sin(14 * np.hypot(u, v)),
    lambda u, v: 0.5 + 0.5 * np.sign(np.sin(8 * np.arctan2(v, u))),
    lambda u, v: (np.sin(16 * v) > 0.3) * 1.0,
    lambda u, v: 0.5 + 0.5 * np.sin(9 * u + 3 * np.sin(5 * v)),
    lambda u, v: np.clip(0.5 + 0.6 * v, 0, 1),
)


def draw(index: int) -> tuple[Image.Image, Image.Image]:
    """Draws image `index` and its mask; the same pixels every time.

    Returns:
        An RGB image of about 128 x 104 px, and a palette mask: 0 background, 1 … 8 the classes,
        255 a void border of 1 to 3 px.
    """
    rng = np.random.default_rng([2012, index])
    width, height = rng.integers(112, 145), rng.integers(88, 121)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    canvas = _ground(rng, x, y)
    labels = np.zeros((height, width), np.uint8)
    for _ in range(rng.integers(1, 5)):
        label = int(rng.integers(1, len(CLASSES)))
        radius = rng.uniform(0.16, 0.36) * height
        angle = rng.uniform(0, 2 * np.pi)
        dx = (x - rng.uniform(0.1, 0.9) * width) / radius
        dy = (y - rng.uniform(0.1, 0.9) * height) / radius
        u = np.cos(angle) * dx + np.sin(angle) * dy
        v = np.cos(angle) * dy - np.sin(angle) * dx
        inside = _OUTLINES[label - 1](u, v)
        dark, light = rng.uniform(0, 110, 3), rng.uniform(130, 255, 3)
        field = _TEXTURES[label - 1](u, v)[..., None]
        canvas[inside] = (dark + field * (light - dark))[inside]
        labels[inside] = label
    canvas += rng.normal(0, 6, canvas.shape)
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    mask = Image.fromarray(_with_border(labels, int(rng.integers(1, 4))), mode="P")
    mask.putpalette(voc_palette().ravel().tolist())
    return image, mask


def _ground(rng: np.random.Generator, x: Field, y: Field) -> Field:
    # One texture all over, so that any two crops of an image have something in common.
    angle, wavelength = rng.uniform(0, np.pi), rng.uniform(6, 28)
    u = (np.cos(angle) * x + np.sin(angle) * y) / wavelength * 2 * np.pi
    v = (np.cos(angle) * y - np.sin(angle) * x) / wavelength * 2 * np.pi
    fields = (
        np.sin(u),
        np.sin(u) * np.sin(v),
        np.sin(u + 1.5 * np.sin(v / 2)),
        np.maximum(np.sin(u), np.sin(v)),
        np.sin(u / 4) + np.sin(v / 3),
    )
    field = 0.5 + 0.5 * fields[rng.integers(len(fields))].clip(-1, 1)
    first, second = rng.uniform(20, 235, (2, 3))
    return first + field[..., None] * (second - first)


def _with_border(labels: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    if width == 2:
        edge[:, :-1] |= labels[:, 1:] != labels[:, :-1]
        edge[:-1] |= labels[1:] != labels[:-1]
    elif width == 3:
        edge = np.asarray(Image.fromarray(edge).convert("L").filter(ImageFilter.MaxFilter(3))) > 0
    return np.where(edge, VOID, labels).astype(np.uint8)


def generate(root: Path, num_train: int = NUM_TRAIN, num_val: int = NUM_VAL) -> Path:
    """Writes the data set once, in `root/VOCdevkit/VOC2012`.

    It is drawn into a temporary folder and moved into place whole: an interrupted run leaves
    nothing half-done, and of two runs that start together one wins and the other uses its files.

    Returns:
        The folder that holds JPEGImages.
    """
    final = root / "VOCdevkit"
    if not final.exists():
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".drawing-", dir=root))
        _write(temporary / "VOC2012", num_train, num_val)
        temporary.chmod(0o755)
        try:
            temporary.rename(final)
        except OSError:
            shutil.rmtree(temporary)
            if not final.exists():
                raise
    return final / "VOC2012"


def _write(folder: Path, num_train: int, num_val: int) -> None:
    images, masks = folder / "JPEGImages", folder / "SegmentationClass"
    lists = folder / "ImageSets" / "Segmentation"
    for part in (images, masks, lists):
        part.mkdir(parents=True)
    names = [f"shapes_{index:06d}" for index in range(num_train + num_val)]
    for index, name in enumerate(names):
        image, mask = draw(index)
        image.save(images / f"{name}.jpg", quality=92)
        mask.save(masks / f"{name}.png")
    splits = {"train": names[:num_train], "val": names[num_train:], "trainval": names}
    for split, members in splits.items():
        (lists / f"{split}.txt").write_text("\n".join(members) + "\n")


class Shapes(MaskedSource):
    """512 training and 128 validation images, drawn on first use (about 5 s)."""

    classes = CLASSES

    def prepare(self) -> None:
        """Draws the images unless they are there."""
        generate(self.root)

    def files(self, split: str) -> list[Path]:
        """See `ImageSource.files`."""
        return voc_files(generate(self.root), split)

    def pairs(self, split: str) -> list[tuple[Path, Path]]:
        """See `MaskedSource.pairs`."""
        return voc_pairs(generate(self.root), split)
