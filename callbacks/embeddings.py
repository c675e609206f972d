"""Draws images as points, close together if their features are similar."""

from __future__ import annotations

import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.epochs import due
from callbacks.inspection import (
    SayOnce,
    backbone_of,
    data_of,
    held_out_examples,
    inspecting,
    pooled_features,
)
from utils import figures
from utils.imports import is_installed
from utils.logging import log_figure
from utils.text import count

_MOST_NAMED = 24  # classes that a legend has room for


class Embeddings(Callback):
    """Draws pooled features in two dimensions, coloured by class if there are classes.

    Args:
        every_n_epochs: when to draw.
        num_images: number of points.
    """

    def __init__(self, every_n_epochs: int, num_images: int) -> None:
        self.every_n_epochs = every_n_epochs
        self.num_images = num_images
        self.say = SayOnce()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws."""
        if not due(trainer, self.every_n_epochs):
            return
        if not is_installed("sklearn"):
            self.say("embeddings: t-SNE is left out; `pip install scikit-learn` adds it.")
        backbone = backbone_of(pl_module)
        found = data_of(trainer).labelled_examples(self.num_images, 0.0)
        classes: tuple[str, ...] = ()
        labels: Tensor | None = None
        if found is None:
            images, split = held_out_examples(trainer, backbone, self.num_images)
        else:
            (images, labels), _, classes = found
            split = "labelled training"
        if len(images) < 2:
            self.say(f"embeddings: {count(len(images), f'{split} image')}, too few for a picture.")
            return
        with inspecting(pl_module, trainer.precision_plugin):
            points = pooled_features(backbone, images).cpu().double()
        where = f"{len(points)} {split} images, step {trainer.global_step}"
        log_figure(trainer, "embeddings", draw(points, labels, classes, where))


def draw(features: Tensor, labels: Tensor | None, classes: tuple[str, ...], where: str) -> Figure:
    """Draws features `(N, D)`: principal components, and t-SNE if scikit-learn is installed.

    t-SNE is left out if all features are equal, as in a collapsed network.

    Args:
        features: centred here.
        labels: `(N,)`, or None.
        classes: names by label.
        where: which images, for the title.
    """
    components, shares = principal_components(features)
    panels = [(components, f"two principal components: {shares.sum():.0%} of the variance")]
    differences = features - features[0]
    largest = differences.abs().max()
    # For equal points scikit-learn divides by 0, and the NaN crashes the whole process. So do
    # squares that overflow float32, hence the scaling.
    if largest > 0 and is_installed("sklearn"):
        points = tsne(differences / largest)
        panels.append((points, "t-SNE (distances between groups mean nothing)"))
    named = len(classes) <= _MOST_NAMED
    title = f"Pooled features as points, {where}"
    title += "" if named else f"\n{len(classes)} classes, each in a colour of its own"
    figure, axes = figures.grid(1, len(panels), cell=(4.6, 4.2), title=title)
    for axis, (points, name) in zip(axes[0], panels, strict=True):
        _scatter(axis, points, labels, classes)
        axis.set(title=name, xticks=[], yticks=[])
        axis.grid(False)
    if classes and named:
        handles, names = axes[0, -1].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right center", fontsize=8, markerscale=2)
    return figure


def _scatter(
    axis: Axes, points: NDArray[np.float64], labels: Tensor | None, classes: tuple[str, ...]
) -> None:
    if labels is None:
        axis.scatter(points[:, 0], points[:, 1], s=9, color="0.45")
        return
    colours = sns.color_palette("husl" if len(classes) > 10 else "tab10", len(classes))
    for label, (name, colour) in enumerate(zip(classes, colours, strict=True)):
        x, y = points[(labels == label).numpy()].T
        axis.scatter(x, y, s=9, color=[colour], label=figures.name(name))


def principal_components(features: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the first two principal components `(N, 2)`, and their shares of the variance."""
    centred = features - features.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    shares = s.square() / s.square().sum().clamp_min(1e-12)
    return (u[:, :2] * s[:2]).numpy(), shares[:2].numpy()


def tsne(features: Tensor) -> NDArray[np.float64]:
    """Returns t-SNE coordinates `(N, 2)` (van der Maaten & Hinton 2008), the same every time."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(features) - 1) / 3)
    layout = TSNE(perplexity=perplexity, init="pca", random_state=0)
    # Half of the default 1000 steps: the divergence is 2 % larger. `n_iter` before version 1.5.
    steps = "max_iter" if "max_iter" in layout.get_params() else "n_iter"
    found: NDArray[np.float64] = layout.set_params(**{steps: 500}).fit_transform(features.numpy())
    return found
