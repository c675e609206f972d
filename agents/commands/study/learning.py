"""Draws the readouts of several runs over the images seen, in one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from callbacks.attention_quality import LIFT
from callbacks.dense_knn import METRIC as DENSE_KNN
from callbacks.online_probe import KNN, LINEAR
from config.lookup import read_settings
from utils import figures
from utils.metrics_file import read_metrics
from utils.nested import flat
from utils.run_folder import RunFolder

# Panels in this order, if any run has measured them; in all of them higher is better.
_PANELS = {
    KNN: "k-NN accuracy, held-out training images",
    LINEAR: "linear accuracy, held-out training images",
    DENSE_KNN: "dense k-NN mIoU, held-out training images",
    LIFT: "attention on objects, training images\n(mass lift, mean of all heads)",
}

Curve = dict[int, float]  # by images seen


def learning(found: Sequence[tuple[str, Sequence[RunFolder]]], title: str) -> Figure | None:
    """Draws one line per row, its range over seeds shaded; None while nothing is measured.

    Args:
        found: labels of rows, and the folders of their seeds.
        title: of the figure.
    """
    curves = {
        label: [curves_of(folder) for folder in folders] for label, folders in found if folders
    }
    panels = [
        name for name in _PANELS if any(name in seed for seeds in curves.values() for seed in seeds)
    ]
    if not panels:
        return None
    columns = 2 if len(panels) == 4 else len(panels)
    figure, axes = figures.grid(len(panels) // columns, columns, cell=(4.2, 3.2), title=title)
    for axis, name in zip(axes.flat, panels, strict=True):
        for index, (label, seeds) in enumerate(curves.items()):
            _line(axis, label, f"C{index}", [seed[name] for seed in seeds if name in seed])
        axis.set(title=_PANELS[name], xlabel="training images seen, with repetitions")
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.xaxis.set_major_formatter("{x:,.0f}")
    axes[0, 0].legend(fontsize=7)
    return figure


def curves_of(folder: RunFolder) -> dict[str, Curve]:
    """Returns the readouts of a run by the images it had seen; 0: before its first step."""
    settings = flat(read_settings(folder.path))
    a_step = int(settings["data.batch_size"]) * int(settings["trainer.accumulate"])
    curves: dict[str, Curve] = {}
    summary = folder.read_summary()
    for name in _PANELS:
        if (value := summary.get(f"before/{name}")) is not None:
            curves[name] = {0: float(value)}
    for step, row in read_metrics(folder.metrics).items():
        for name in _PANELS.keys() & row.keys():
            if step:  # row 0 holds what was measured before the first step
                curves.setdefault(name, {})[(step + 1) * a_step] = row[name]
    return curves


def _line(axis: Axes, label: str, colour: str, seeds: Sequence[Mapping[int, float]]) -> None:
    # Only at points where all seeds were measured.
    seen = sorted(set.intersection(*(set(seed) for seed in seeds))) if seeds else []
    if not seen:
        return
    values = np.array([[seed[images] for images in seen] for seed in seeds])
    name = figures.name(label) + (f" ({len(seeds)} seeds)" if len(seeds) > 1 else "")
    axis.plot(seen, values.mean(0), color=colour, marker="o", markersize=3, label=name)
    axis.fill_between(seen, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
