"""Draws the IoU of every class as bars."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from callbacks.confusion_figure import ConfusionFigure, Counts
from utils import figures
from utils.logging import Chart
from utils.text import count

_MOST_ROWS = 60  # bars in one column
_WHITE_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # keeps lines off numbers


class ClassIoU(ConfusionFigure):
    """Draws the IoU of the held-out images, and at the end that of the test images."""

    kind = "class_iou"

    def picture(self, counts: Counts) -> Figure:
        """See `ConfusionFigure.picture`."""
        return draw(counts.confusion, counts.names, counts.where, counts.colours)

    def chart(self, counts: Counts) -> Chart:
        """See `ConfusionFigure.chart`: the best class first."""
        iou, there = by_class(counts.confusion)
        best_first = np.argsort(-iou, kind="stable")
        rows = [(counts.names[k], float(iou[k])) for k in best_first if there[k]]
        return Chart(f"IoU by class, {counts.where}", ("class", "IoU"), rows, "bars")


def by_class(confusion: Tensor) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Returns the IoU of every class, and whether it occurs or is predicted."""
    hits = confusion.diagonal().double()
    union = confusion.sum(0) + confusion.sum(1) - hits
    return (hits / union.clamp(min=1)).numpy(), (union > 0).numpy()


def draw(
    confusion: Tensor, names: tuple[str, ...], where: str, colours: NDArray[np.uint8]
) -> Figure:
    """Draws bars from counts `(C, C)`, rows the truth, in the colours of the labels.

    Args:
        confusion: the counts.
        names: of the classes.
        where: which images and weights, in words.
        colours: by label, `(256, 3)`.
    """
    iou, there = by_class(confusion)
    mean = iou[there].mean() if there.any() else 0.0
    title = f"IoU by class, {where}: mean {mean:.3f} over {count(int(there.sum()), 'class')}"
    columns = -(-len(names) // _MOST_ROWS)
    longest = -(-len(names) // columns)
    cell = (6.4 if columns == 1 else 4.4, 0.22 * longest + 0.8)
    figure, axes = figures.grid(1, columns, cell=cell, title=title)
    for axis, rows in zip(axes[0], np.array_split(np.arange(len(names)), columns), strict=True):
        width = np.where(there, iou, 0)[rows]
        axis.barh(rows, width, color=colours[rows] / 255, edgecolor="grey", linewidth=0.5)
        for row in rows:
            text = f"{iou[row]:.2f}" if there[row] else "neither occurs nor is predicted: left out"
            axis.text(
                iou[row] * there[row] + 0.01, row, text, va="center", fontsize=7, bbox=_WHITE_BOX
            )
        axis.axvline(
            mean, linestyle="--", color="black", linewidth=1, zorder=1.5, label=f"mean {mean:.3f}"
        )
        axis.set(
            yticks=rows,
            xlim=(0, 1.08),
            xticks=np.linspace(0, 1, 6),
            xlabel="intersection over union",
        )
        axis.set_yticklabels([figures.name(names[row]) for row in rows])
        axis.set_ylim(rows[0] + longest - 0.4, rows[0] - 0.6)
        axis.grid(axis="y", visible=False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", fontsize=7)
    return figure
