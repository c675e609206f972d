"""IoU of every class as bars."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.counts import CountsPicture
from utils import figures
from utils.palette import coloured


class ClassIoU(CountsPicture):
    """Draws it of the held-out images, and at the end of the test images."""

    kind = "class_iou"

    def picture(self, confusion: Tensor, names: tuple[str, ...], where: str) -> Figure:
        """See `CountsPicture.picture`."""
        return draw(confusion, names, where)


def draw(confusion: Tensor, names: tuple[str, ...], where: str) -> Figure:
    """Draws bars from counts `(C, C)`, rows the truth."""
    hits = confusion.diagonal().double()
    union = confusion.sum(0) + confusion.sum(1) - hits
    iou = (hits / union.clamp(min=1)).numpy()
    there = (union > 0).numpy()
    mean = iou[there].mean() if there.any() else 0.0
    title = f"IoU by class, {where}: mean {mean:.3f} over {there.sum()} classes"
    figure, axes = figures.grid(1, 1, cell=(6.4, 0.22 * len(names) + 0.8), title=title)
    axis, rows = axes[0, 0], np.arange(len(names))
    colours = coloured(rows.astype(np.uint8)) / 255
    axis.barh(rows, np.where(there, iou, 0), color=colours, edgecolor="grey", linewidth=0.5)
    for row in rows:
        text = f"{iou[row]:.2f}" if there[row] else "neither occurs nor is predicted: left out"
        axis.text(iou[row] * there[row] + 0.01, row, text, va="center", fontsize=7)
    axis.axvline(mean, linestyle="--", color="black", linewidth=1, label=f"mean {mean:.3f}")
    axis.set(yticks=rows, yticklabels=names, xlim=(0, 1), xlabel="intersection over union")
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.legend(loc="lower right", fontsize=7)
    return figure
