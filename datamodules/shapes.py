"""A generated stand-in for Pascal VOC: textured shapes on a ground of noise, in VOC's layout.

One large object, sometimes smaller ones behind it. Shape and texture distinguish the classes;
colours vary from place to place in object and ground alike and are not informative. So two crops of
an image have only its object in common, and a network that makes them agree has to find it. Masks
have a void border: everything meant for VOC can be tried here first, without a download.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from datamodules.masks.reading import read_labels
from datamodules.sources import ImageSource, LabelledSource, MaskedSource
from datamodules.voc import voc_files, voc_pairs
from utils.files import owner, remove_abandoned
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
NUM_TRAIN, NUM_VAL = 1024, 256
# Levels of the colours, of 255.
_GROUND, _DARK, _LIGHT = (60.0, 200.0), (0.0, 90.0), (150.0, 255.0)
# Version of the drawing: a folder with another version is refused.
_VERSION, _MARKER = 2, "drawing.txt"

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
# One texture a class, in the same coordinates: 0 … 1 blends two random colours.
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
        An RGB image of about 96 x 80 px, and a palette mask: 0 background, 1 … 8 the classes,
        255 a void border of 1 to 3 px.
    """
    rng = np.random.default_rng([2012, index])
    width, height = int(rng.integers(84, 109)), int(rng.integers(72, 89))
    canvas = _noise(rng, (height, width), *_GROUND)
    labels = np.zeros((height, width), np.uint8)
    for _ in range(rng.integers(0, 3)):
        _add_object(rng, canvas, labels, radius=(0.1, 0.2), place=(0.0, 1.0))
    _add_object(rng, canvas, labels, radius=(0.34, 0.48), place=(0.4, 0.6))
    canvas += rng.normal(0, 6, canvas.shape)
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    mask = Image.fromarray(_with_border(labels, int(rng.integers(1, 4))), mode="P")
    mask.putpalette(voc_palette().ravel().tolist())
    return image, mask


def _add_object(
    rng: np.random.Generator,
    canvas: Field,
    labels: NDArray[np.uint8],
    radius: tuple[float, float],
    place: tuple[float, float],
) -> None:
    """Draws an object of a random class over what is there.

    Args:
        rng: source of all random numbers.
        canvas: `(H, W, 3)`, drawn on.
        labels: `(H, W)`, drawn on.
        radius: smallest and largest, as a share of the height.
        place: smallest and largest position of the centre, as a share of width and height.
    """
    height, width = labels.shape
    y, x = np.mgrid[:height, :width].astype(np.float64)
    label = int(rng.integers(1, len(CLASSES)))
    size, angle = rng.uniform(*radius) * height, rng.uniform(0, 2 * np.pi)
    dx = (x - rng.uniform(*place) * width) / size
    dy = (y - rng.uniform(*place) * height) / size
    u = np.cos(angle) * dx + np.sin(angle) * dy
    v = np.cos(angle) * dy - np.sin(angle) * dx
    inside = _OUTLINES[label - 1](u, v)
    dark, light = (_noise(rng, labels.shape, *levels) for levels in (_DARK, _LIGHT))
    texture = _TEXTURES[label - 1](u, v)[..., None]
    canvas[inside] = (dark + texture * (light - dark))[inside]
    labels[inside] = label


def _noise(rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float) -> Field:
    """Returns random colours between two levels that vary every ten pixels, `(H, W, 3)`."""
    cells = rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)
    smooth = Image.fromarray(cells).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return low + np.asarray(smooth) / 255 * (high - low)


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


def generate(
    root: Path,
    num_train: int = NUM_TRAIN,
    num_val: int = NUM_VAL,
    option: str = ImageSource.root_option,
) -> Path:
    """Writes the data set once, in `root/VOCdevkit/VOC2012`.

    It is drawn in a temporary folder and moved into place when complete: an interrupted run leaves
    nothing half-done, and if two runs start together, one wins and the other uses its files.

    Args:
        root: the folder, created if missing.
        num_train: number of training images.
        num_val: number of validation images.
        option: the option that `root` was given by.

    Returns:
        The folder that holds JPEGImages.

    Raises:
        FileExistsError: the folder holds other images, or those of an earlier version.
        OSError: the folder cannot be written.
    """
    final = root / "VOCdevkit"
    remove_abandoned(root.glob(".drawing*"))
    if not final.exists():
        try:
            _draw_all(final, num_train, num_val)
        except OSError as error:
            raise OSError(
                f"The generated images cannot be written to {root} ({error.strerror or error}). "
                f"Set {option} to a folder that you may write to, and that has room for them."
            ) from error
    _check_version(final, option)
    return final / "VOC2012"


def _draw_all(final: Path, num_train: int, num_val: int) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".drawing{owner()}-", dir=final.parent))
    try:
        _write(temporary / "VOC2012", num_train, num_val)
        (temporary / _MARKER).write_text(f"{_VERSION}\n")
        temporary.chmod(0o755)
        temporary.rename(final)
    except OSError:
        shutil.rmtree(temporary)
        if not final.exists():
            raise


def _check_version(folder: Path, option: str) -> None:
    marker = folder / _MARKER
    if not marker.is_file() or marker.read_text().strip() != str(_VERSION):
        raise FileExistsError(
            f"{folder} was not drawn by this version of the generated images. Remove it, or set "
            f"{option} to another folder; an earlier run needs the earlier images."
        )


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


@cache  # a run asks for labels, and at its end whether there are classes
def _largest(mask: Path) -> int:
    """Returns the class with the most pixels; 0 is the first after the background."""
    pixels = np.bincount(read_labels(mask, len(CLASSES)).numpy().ravel(), minlength=VOID + 1)
    return int(pixels[1 : len(CLASSES)].argmax())


class Shapes(MaskedSource, LabelledSource):
    """1,024 training and 256 validation images, drawn on first use (about 5 s)."""

    classes = CLASSES

    def prepare(self) -> None:
        """Draws the images unless they are there."""
        self._generated()

    def files(self, split: str) -> list[Path]:
        """See `ImageSource.files`."""
        return voc_files(self._generated(), split)

    def pairs(self, split: str) -> list[tuple[Path, Path]]:
        """See `MaskedSource.pairs`."""
        return voc_pairs(self._generated(), split)

    def labels(self, split: str) -> tuple[tuple[str, ...], list[int]]:
        """See `LabelledSource.labels`: the class with the most pixels."""
        return CLASSES[1:], [_largest(mask) for _, mask in self.pairs(split)]

    def _generated(self) -> Path:
        return generate(self.root, option=self.root_option)
