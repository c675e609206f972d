"""Draws the confusion matrix: what each class is taken for."""

from __future__ import annotations

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.confusion_figure import ConfusionFigure, Counts
from utils import figures
from utils.logging import Chart

_MOST_CLASSES = 40


class ConfusionMatrix(ConfusionFigure):
    """Draws that of the held-out images, and at the end that of the test images."""

    kind = "confusion_matrix"

    def picture(self, counts: Counts) -> Figure:
        """See `ConfusionFigure.picture`."""
        return draw(counts.confusion, counts.names, counts.where)

    def chart(self, counts: Counts) -> Chart:
        """See `ConfusionFigure.chart`: counts pixels, or images, of the classes that are drawn."""
        confusion, names = most_frequent(counts.confusion, counts.names)
        rows = [
            (truth, taken, int(count))
            for truth, row in zip(names, confusion.tolist(), strict=True)
            for taken, count in zip(names, row, strict=True)
        ]
        title = f"What each class is taken for, {counts.where}"
        return Chart(title, ("truth", "predicted", "count"), rows, "confusion")


def most_frequent(confusion: Tensor, names: tuple[str, ...]) -> tuple[Tensor, tuple[str, ...]]:
    """Returns counts and names of the most frequent classes, as many as remain readable."""
    if len(names) <= _MOST_CLASSES:
        return confusion, names
    frequent = confusion.sum(1).argsort(descending=True)[:_MOST_CLASSES].sort().values
    return confusion[frequent][:, frequent], tuple(names[index] for index in frequent)


def draw(confusion: Tensor, names: tuple[str, ...], where: str) -> Figure:
    """Draws counts `(C, C)`, rows the truth, as shares of each row; empty rows stay blank."""
    shown = f"What each class is taken for, {where}"
    if len(names) > _MOST_CLASSES:
        shown += f"\n(the {_MOST_CLASSES} most frequent of {len(names)} classes, among themselves)"
    confusion, names = most_frequent(confusion, names)
    counts = confusion.double().numpy()
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    labels = [figures.name(name) for name in names]
    side = 0.34 * len(names) + 1.0 + 0.07 * max(map(len, labels), default=0)
    figure, axes = figures.grid(1, 1, cell=(side + 1.2, side), title=shown)
    text = np.where(shares >= 0.005, np.char.mod("%.0f", 100 * shares), "")
    sns.heatmap(
        100 * shares,
        mask=np.broadcast_to(totals == 0, shares.shape),
        annot=text,
        fmt="",
        annot_kws={"fontsize": 6},
        vmin=0,
        vmax=100,
        cmap="Blues",
        xticklabels=labels,
        yticklabels=labels,
        cbar_kws={"label": "% of the true class", "shrink": 0.7},
        linewidths=0.3,
        linecolor="#dddddd",
        square=True,
        ax=axes[0, 0],
    )
    axes[0, 0].set(xlabel="predicted", ylabel="truth")
    axes[0, 0].tick_params(axis="x", rotation=90)
    return figure
