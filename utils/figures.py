"""The common style of all figures."""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

# A backend without a screen. That of a notebook needs none either, and stays.
if not os.environ.get("MPLBACKEND", "").startswith("module://"):
    matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from PIL import Image

from utils.files import replacing

# Absolute colours, as in the study: 1 is red, 0 cyan-blue; anticorrelation turns dark.
CORRELATION = LinearSegmentedColormap.from_list(
    "correlation",
    [(0.0, "#1b0c42"), (0.25, "#4146a8"), (0.5, "#27bceb"), (0.75, "#f3d23b"), (1.0, "#d41200")],
)
_LONGEST_NAME = 32  # letters in the name of a class or file
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
        # The usual place of a title, set so that axes need not lay out all ticks to find it.
        "axes.titley": 1.0,
        "figure.titlesize": 11,
        "image.interpolation": "nearest",
        "figure.dpi": 120,
    }
)
# Names of classes and files may have letters that the fonts lack; a box replaces each.
warnings.filterwarnings("ignore", message="Glyph .* missing from font")


def plain(text: str) -> str:
    """Returns text that a figure shows literally: a dollar sign would begin mathematics."""
    return text.replace("$", r"\$")


def name(text: str) -> str:
    """Returns a name for a figure: plain, and short enough to leave room for the drawing."""
    if len(text) > _LONGEST_NAME:
        end = _LONGEST_NAME // 3
        text = f"{text[: _LONGEST_NAME - 1 - end]}…{text[-end:]}"
    # A legend leaves out names that begin with an underscore: put a zero-width space before it.
    return plain(f"\u200b{text}" if text.startswith("_") else text)


def save(figure: Figure, file: Path, **settings: Any) -> None:
    """Writes a PNG, completely or not at all, and frees the figure.

    `settings` are those of matplotlib's `savefig`.
    """
    with replacing(file) as stream:
        figure.savefig(stream, format="png", **settings)
    close(figure)


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


def show_image(axis: Axes, image: NDArray[np.generic], **settings: Any) -> AxesImage:
    """Draws an image without ticks."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    return axis.imshow(image, **settings)


def panels(rows: int, columns: int, title: str = "") -> tuple[Figure, NDArray[Any]]:
    """Makes a figure of `(rows, columns)` charts with titles and labels, of 3.6 x 2.4 inches each.

    Margins are fixed, not measured as in `grid`: twenty charts take 0.6 of the time.

    Returns:
        The figure and its axes, always a two-dimensional array.
    """
    head = 0.1 + 0.2 * len(title.splitlines())
    size = np.array([3.6 * columns, 2.4 * rows + head])
    figure = plt.figure(figsize=tuple(size))
    figure.suptitle(plain(title), y=1 - 0.05 / size[1], va="top")
    axes = np.empty((rows, columns), object)
    for row, column in np.ndindex(rows, columns):
        # Inches from the lower left; the rest of each panel is for its title and labels.
        corner = np.array([3.6 * column + 0.7, 2.4 * (rows - 1 - row) + 0.5])
        axes[row, column] = figure.add_axes((*corner / size, *np.array([2.75, 1.65]) / size))
    return figure, axes


class Sheet:
    """Pictures in rows and columns on one pair of axes: axes for each take three times as long.

    A picture is 1 wide; rows and columns are numbered from the upper left.

    Args:
        axis: to draw on; used completely.
        rows: number of rows of pictures.
        columns: number of pictures per row.
        height: of a picture, relative to its width.
        foot: space below each row, relative to the width.
    """

    _GAP = 0.07  # between columns

    def __init__(self, axis: Axes, rows: int, columns: int, height: float, foot: float) -> None:
        self.axis, self.height, self._foot = axis, height, foot
        axis.set_axis_off()
        axis.set_xlim(0, self.width(columns))
        axis.set_ylim(rows * (height + foot) - foot, 0)
        axis.set_aspect("equal")

    @classmethod
    def width(cls, columns: int) -> float:
        """Returns the width of a row, including gaps."""
        return columns * (1 + cls._GAP) - cls._GAP

    def corner(self, row: int, column: int) -> tuple[float, float]:
        """Returns the upper left corner `(x, y)` of a picture."""
        return column * (1 + self._GAP), row * (self.height + self._foot)

    def show(self, row: int, column: int, image: NDArray[np.generic], **settings: Any) -> AxesImage:
        """Draws an image, with the settings of `Axes.imshow`."""
        x, y = self.corner(row, column)
        limits = self.axis.axis()
        shown = self.axis.imshow(image, extent=(x, x + 1, y + self.height, y), **settings)
        self.axis.axis(limits)  # because imshow narrows them to its image
        return shown

    def above(self, column: int, words: str, **settings: Any) -> None:
        """Writes a title above a column."""
        x, y = self.corner(0, column)
        self.axis.text(x + 0.5, y - 0.06, words, ha="center", va="bottom", **settings)

    def below(self, row: int, column: int, words: str) -> None:
        """Writes words below a picture."""
        x, y = self.corner(row, column)
        foot = y + self.height + 0.03
        self.axis.text(x + 0.5, foot, words, ha="center", va="top", fontsize=7)

    def caption(self, words: str) -> None:
        """Writes words below all pictures, at a fixed distance for any height of the figure."""
        left, right, bottom, _ = self.axis.axis()
        middle = (left + right) / 2
        self.axis.text(middle, bottom + 0.06, words, ha="center", va="top", fontsize=8)

    def left(self, row: int, words: str) -> None:
        """Writes a title left of a row."""
        x, y = self.corner(row, 0)
        middle = y + self.height / 2
        self.axis.text(x - 0.06, middle, words, ha="right", va="center", rotation=90)


def sheet(
    rows: int,
    columns: int,
    cell: float = 1.6,
    title: str = "",
    height: float = 1.0,
    foot: float = 0.07,
    beside: float = 0.0,
) -> tuple[Figure, Sheet]:
    """Makes a figure of `(rows, columns)` pictures.

    Args:
        rows: number of rows of pictures.
        columns: number of pictures per row.
        cell: width of a picture, in inches.
        title: of the figure.
        height: of a picture, relative to its width.
        foot: space below each row, relative to the width: words need 0.2.
        beside: inches for titles left or right of the pictures.
    """
    wide = columns * cell
    # As tall as the pictures: otherwise there would be empty space above and below.
    size = (wide + beside, rows * (height + foot) * wide / Sheet.width(columns))
    figure, axes = grid(1, 1, size, title)
    return figure, Sheet(axes[0, 0], rows, columns, height, foot)


@dataclass(frozen=True)
class Picture:
    """A drawn figure.

    Attributes:
        pixels: `(H, W, 3)`.
        png: the encoded pixels.
        title: of the figure.
    """

    pixels: NDArray[np.uint8]
    png: bytes
    title: str


def picture(figure: Figure) -> Picture:
    """Draws a figure once, for its pixels and its file, and frees it."""
    figure.canvas.draw()
    # Not `savefig`, which would draw twice: once for the layout, once for the file.
    pixels = np.array(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
    file = io.BytesIO()
    # The lowest compression takes 0.6 of the time, and a tenth more disk space.
    Image.fromarray(pixels).save(file, "png", compress_level=1)
    close(figure)
    return Picture(pixels, file.getvalue(), figure.get_suptitle())


def close(figure: Figure) -> None:
    """Frees a figure."""
    plt.close(figure)


def close_all() -> None:
    """Frees all figures, including those whose drawing failed."""
    plt.close("all")
