"""Every logged scalar over the steps, in one picture."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pytorch_lightning import Callback, LightningModule, Trainer

from callbacks.inspection import due
from utils import figures
from utils.logging import RunFolderLogger, log_figure, one_of_many

# Drawn into the panel of the loss, as what it is read against.
_REFERENCES = ("noise_floor", "lower_bound", "chance_level")


class LearningCurves(Callback):
    """Draws one panel per scalar, training and validation together.

    Args:
        every_n_epochs: when to draw.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        self.every_n_epochs = every_n_epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws what has been logged so far."""
        logger = next((log for log in trainer.loggers if isinstance(log, RunFolderLogger)), None)
        if logger and due(trainer, self.every_n_epochs) and len(logger.rows) > 1:
            log_figure(trainer, "learning_curves", draw(logger.rows))


def is_curve(name: str) -> bool:
    """Returns whether a scalar of this name has a panel of its own."""
    # The test is a single point.
    return "/" in name and not one_of_many(name) and not name.startswith("test/")


def draw(rows: Mapping[int, Mapping[str, float]]) -> Figure:
    """Draws scalars by step; `train/x` and `val/x` share a panel."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for step in sorted(rows):
        for name, value in rows[step].items():
            if is_curve(name):
                curves.setdefault(name, []).append((step, value))
    panels = sorted({name.partition("/")[2] for name in curves} - {"", *_REFERENCES})
    panels.sort(key=lambda panel: panel != "loss")
    columns = min(3, max(1, len(panels)))
    figure, axes = figures.grid(
        -(-len(panels) // columns), columns, cell=(3.6, 2.4), title="Learning curves"
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes.flat[: len(panels)], panels, strict=True):
        for split, style in (("train", "C0-"), ("val", "C1o--")):
            if points := curves.get(f"{split}/{panel}"):
                axis.plot(
                    *zip(*points, strict=True), style, label=split, markersize=3, linewidth=1.2
                )
        if panel == "loss":
            _references(axis, curves)
        _scale(axis)
        axis.set(title=panel.replace("_", " "), xlabel="step")
        axis.legend(fontsize=7)
    return figure


def _references(axis: Axes, curves: Mapping[str, list[tuple[int, float]]]) -> None:
    for name, style in zip(_REFERENCES, (":", "-.", ":"), strict=True):
        points = curves.get(f"train/{name}")
        if points and points[-1][1] > 0:
            axis.axhline(points[-1][1], linestyle=style, color="grey", label=name.replace("_", " "))
    values = [value for line in axis.get_lines() for value in np.asarray(line.get_ydata())]
    if values and min(values) > 0 and max(values) > 10 * min(values):
        axis.set_yscale("log")


def _scale(axis: Axes) -> None:
    low, high = axis.get_ylim()
    if high - low < 1e-3 * max(abs(low), abs(high)):  # rounding is no news
        margin = 0.1 * abs(high) or 1.0
        axis.set_ylim(low - margin, high + margin)
    if axis.get_yscale() == "linear":
        axis.ticklabel_format(axis="y", useOffset=False)
