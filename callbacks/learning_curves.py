"""Draws every logged scalar over the steps, in one picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pytorch_lightning import Callback, LightningModule, Trainer

from callbacks.epochs import due, last_epoch
from utils import figures
from utils.logging import log_figure, one_of_many, own_log

# Reference lines in the panel of the loss.
_REFERENCES = ("noise_floor", "lower_bound", "chance_level")
# Shares and correlations are shown over their whole range, so that noise is not magnified; the mass
# lift from chance to twice the share of the area.
_FROM_0_TO_1 = frozenset(
    {
        "accuracy",
        "linear_accuracy",
        "knn_accuracy",
        "miou",
        "dense_knn_miou",
        "mass_lift",
        "f1",
        "precision",
        "recall",
        "diagonal_mean",
        "off_diagonal_rms",
        "mean_cosine",
        "gradient_cosine",
        "gradient_cosine_batch",
        "data_wait_share",
    }
)
# Scalars that show whether a run is healthy, not what it learns; drawn last, in this order.
_DIAGNOSTICS = (
    "embedding_std",
    "features_std",
    "mean_cosine",
    "rank_me",
    "grad_norm",
    "gradient_cosine",
    "gradient_cosine_batch",
    "gradient_noise_scale",
    "momentum_teacher",
    "weight_decay",
    "data_wait_share",
    "lr",
)
_LEAST_SPREAD = 0.1  # of an axis, relative to its largest value
_MOST_POINTS = 1000  # of a curve: more than a panel has pixels
_MOST_MARKED = 60  # most points of a curve for which each is marked

Panel = dict[str, list[tuple[int, float]]]  # steps and values by split


class LearningCurves(Callback):
    """Draws one panel per scalar, training and validation together.

    Args:
        every_n_epochs: when to draw.
    """

    def __init__(self, every_n_epochs: int) -> None:
        self.every_n_epochs = every_n_epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws what has been logged so far."""
        if due(trainer, self.every_n_epochs) and not last_epoch(trainer):
            self._draw(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws all curves, also if the run was killed after its last step and resumed."""
        self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        log = own_log(trainer.loggers)
        if log and len(log.metrics.rows) > 1:
            log_figure(trainer, "learning_curves", draw(log.metrics.rows))


def is_curve(name: str) -> bool:
    """Returns whether a scalar of this name has a panel of its own."""
    # The test is a single point.
    return "/" in name and not one_of_many(name) and not name.startswith("test/")


def draw(rows: Mapping[int, Mapping[str, float]]) -> Figure:
    """Draws scalars by step; `train/x` and `val/x` share a panel.

    Scalars that never change have no panel, and are listed in the title.
    """
    panels: dict[str, Panel] = {}
    for step in sorted(rows):
        for name, value in rows[step].items():
            split, _, panel = name.partition("/")
            if is_curve(name) and panel:
                panels.setdefault(panel, {}).setdefault(split, []).append((step, value))
    references = {name: panels.pop(name) for name in _REFERENCES if name in panels}
    constants = ((name, _constant(name, panel)) for name, panel in panels.items())
    flat = {name: value for name, value in constants if value is not None}
    if len(flat) == len(panels):
        flat = {}
    shown = sorted((name for name in panels if name not in flat), key=lambda n: rank(n, panels[n]))
    title = "Learning curves"
    if flat:
        words = (f"{_words(name)} {value:.4g}" for name, value in sorted(flat.items()))
        title += f"\nconstant: {', '.join(words)}"
    columns = min(3, max(1, len(shown)))
    figure, axes = figures.panels(max(1, -(-len(shown) // columns)), columns, title)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat[: len(shown)], shown, strict=True):
        for split, points in panels[name].items():
            style: dict[str, Any] = {"color": "C1", "linestyle": "--"} if split == "val" else {}
            axis.plot(
                *zip(*_thinned(points), strict=True),
                **{"color": "C0", "linewidth": 1.2, "markersize": 3} | style,
                marker=marker(points),
                label=split,
            )
        if name == "loss":
            _references(axis, references)
        scale(axis, name)
        axis.set(title=_words(name), xlabel="step")
        axis.legend(fontsize=7)
    return figure


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    every = -(-len(points) // _MOST_POINTS)
    return points[:-1:every] + points[-1:]


def _words(name: str) -> str:
    return name.replace("_", " ")


def marker(points: Sequence[Any]) -> str:
    """Returns matplotlib's marker for the points of a curve; none for a long one."""
    return "o" if len(points) <= _MOST_MARKED else ""


def rank(name: str, splits: Iterable[str]) -> tuple[int, int, str]:
    """Sorts panels: the loss, scalars of held-out images only, the rest, diagnostics."""
    if name in _DIAGNOSTICS:
        return 3, _DIAGNOSTICS.index(name), name
    return (0 if name == "loss" else 1 if list(splits) == ["val"] else 2), 0, name


def _constant(name: str, panel: Panel) -> float | None:
    """Returns the value of a panel that was measured several times and never changed, or None."""
    values = [value for points in panel.values() for _, value in points]
    alone = name == "loss" or name in _FROM_0_TO_1 or len(values) < 2
    return None if alone or min(values) != max(values) else values[0]


def _references(axis: Axes, references: Mapping[str, Panel]) -> None:
    for name, style in zip(_REFERENCES, (":", "-.", ":"), strict=True):
        points = references.get(name, {}).get("train")
        if points and points[-1][1] > 0:
            axis.axhline(points[-1][1], linestyle=style, color="grey", label=_words(name))
    values = [value for line in axis.get_lines() for value in np.asarray(line.get_ydata())]
    if values and min(values) > 0 and max(values) > 10 * min(values):
        axis.set_yscale("log")


def scale(axis: Axes, name: str) -> None:
    """Sets the range of a drawn panel to that of its kind, or so that noise is not magnified."""
    if axis.get_yscale() != "linear":
        return
    low, high = axis.get_ylim()
    if name in _FROM_0_TO_1:  # wider only where a value lies outside
        values = [value for line in axis.get_lines() for value in np.asarray(line.get_ydata())]
        low, high = min(0.0, *values), max(1.0, *values)
        margin = 0.03 * (high - low)
        axis.set_ylim(low - margin, high + margin)
    elif (missing := _LEAST_SPREAD * max(abs(low), abs(high)) - (high - low)) > 0:
        axis.set_ylim(low - missing / 2, high + missing / 2)
    axis.ticklabel_format(axis="y", useOffset=False)
