"""One look for every picture."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from utils.files import replacing

# Absolute colours, as in the study: 1 is red, 0 cyan-blue; anticorrelation turns dark.
CORRELATION = LinearSegmentedColormap.from_list(
    "correlation",
    [(0.0, "#1b0c42"), (0.25, "#4146a8"), (0.5, "#27bceb"), (0.75, "#f3d23b"), (1.0, "#d41200")],
)
# One colour per attention head, the same in every figure; neighbours differ most.
_BRIGHT, _DARK = sns.color_palette("bright", 10), sns.color_palette("dark", 10)
HEADS: list[tuple[float, float, float]] = [
    palette[index] for palette in (_BRIGHT, _DARK) for index in (0, 1, 2, 3, 4, 8, 9, 6, 7)
]

matplotlib.rcParams.update(
    {
        **sns.axes_style("whitegrid"),
        "font.size": 9,
        "axes.titlesize": 9,
        "figure.titlesize": 11,
        "image.interpolation": "nearest",
        "figure.dpi": 120,
    }
)
# Names of classes and files may hold letters that no font here has; a box stands for each.
warnings.filterwarnings("ignore", message="Glyph .* missing from font")


def plain(text: str) -> str:
    """Returns text that a figure shows letter by letter: dollars would begin mathematics."""
    return text.replace("$", r"\$")


def name(text: str, most: int = 32) -> str:
    """Returns a name for a figure: plain, and no longer than leaves room for what is drawn."""
    if len(text) > most:
        text = f"{text[: most - 1 - most // 3]}…{text[-(most // 3) :]}"
    # A legend leaves out what begins with an underscore; here it begins with a space of no width.
    return plain(f"\u200b{text}" if text.startswith("_") else text)


def save(figure: Figure, file: Path, **settings: Any) -> None:
    """Writes a PNG that is whole or not there; `settings` are those of `Figure.savefig`."""
    with replacing(file) as stream:
        figure.savefig(stream, format="png", **settings)


def grid(
    rows: int, columns: int, cell: tuple[float, float] = (1.6, 1.6), title: str = ""
) -> tuple[Figure, NDArray[Any]]:
    """Makes a figure of `(rows, columns)` axes of `cell` inches each.

    Returns:
        The figure and its axes, always a two-dimensional array.
    """
    size = (max(4.0, columns * cell[0]), rows * cell[1] + 0.6)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    figure.suptitle(plain(title))
    return figure, axes


def show_image(axis: Axes, image: NDArray[np.generic], **settings: object) -> object:
    """Draws an image without ticks."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    return axis.imshow(image, **settings)  # type: ignore[arg-type]


def label_rows(axes: NDArray[Any], labels: Sequence[str]) -> None:
    """Writes a label left of every row."""
    for row, label in zip(axes, labels, strict=True):
        row[0].set_ylabel(label)


@dataclass(frozen=True)
class Picture:
    """A figure as it was drawn.

    Attributes:
        pixels: `(H, W, 3)`.
        png: the same, encoded.
        title: of the figure.
    """

    pixels: NDArray[np.uint8]
    png: bytes
    title: str


def picture(figure: Figure) -> Picture:
    """Draws a figure, for whoever wants its pixels or its file."""
    figure.canvas.draw()
    # Not `savefig`, which would draw twice: once for the layout, once for the file.
    pixels = np.array(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return Picture(pixels, file.getvalue(), figure.get_suptitle())


def close(figure: Figure) -> None:
    """Frees a figure."""
    plt.close(figure)


def close_all() -> None:
    """Frees every figure, those as well whose drawing was given up."""
    plt.close("all")
