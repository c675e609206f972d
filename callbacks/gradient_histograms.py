"""Shows how large the gradients of every weight matrix are: where they vanish or explode."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from callbacks.epochs import due
from utils import figures
from utils.logging import log_figure, log_histograms
from utils.optim import decays

# Bins of half a power of ten; smaller and larger sizes count in the first and last bin.
LOWEST, HIGHEST, PER_POWER = -12, 2, 2
EDGES = np.linspace(LOWEST, HIGHEST, (HIGHEST - LOWEST) * PER_POWER + 1)
_MOST_NAMES = 60


class GradientHistograms(Callback):
    """Counts the sizes of the gradients of the first step of an epoch, and draws them.

    Gradients are those of the optimizer step: unscaled, accumulated, not yet clipped.

    Args:
        every_n_epochs: when to draw.
    """

    def __init__(self, every_n_epochs: int) -> None:
        self.every_n_epochs = every_n_epochs
        self._counts: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """The counts of an epoch that has not ended."""
        return {"counts": self._counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them."""
        self._counts = state_dict["counts"]

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Counts."""
        first = trainer.fit_loop.epoch_loop.batch_idx < trainer.accumulate_grad_batches
        if first and due(trainer, self.every_n_epochs):
            self._counts = {
                name: sizes(parameter.grad)
                for name, parameter in pl_module.named_parameters()
                if parameter.grad is not None and decays(name, parameter)
            }

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws."""
        found = {name: counts.cpu().numpy() for name, counts in self._counts.items()}
        self._counts = {}
        if not found:
            return
        log_histograms(trainer, "gradients", found, EDGES)
        title = f"Sizes of the gradients, first step of epoch {trainer.current_epoch + 1}"
        log_figure(trainer, "gradient_histograms", draw(found, title), found)


def sizes(gradient: Tensor) -> Tensor:
    """Counts the entries of a gradient by log10 of their size, `(len(EDGES) - 1,)` int64.

    Zeros count in the first bin, entries that are not finite in the last.
    """
    powers = gradient.detach().float().abs().log10().nan_to_num(nan=HIGHEST, posinf=HIGHEST)
    bins = ((powers - LOWEST) * PER_POWER).floor().clamp(0, len(EDGES) - 2).long()
    return torch.bincount(bins.flatten(), minlength=len(EDGES) - 1)


def draw(counts: dict[str, NDArray[np.int64]], title: str) -> Figure:
    """Draws the share of each size, one row per tensor in the order of the network.

    Args:
        counts: by the tensor's name, see `sizes`.
        title: of the figure.
    """
    names = list(counts)
    shares = np.stack([each / each.sum() for each in counts.values()])
    height = 1.2 + 0.14 * min(len(names), _MOST_NAMES)
    figure, ((axis,),) = figures.grid(1, 1, cell=(6.4, height), title=title)
    image = axis.imshow(
        shares,
        aspect="auto",
        cmap="viridis",
        vmin=0,
        extent=(LOWEST, HIGHEST, len(names), 0),
        interpolation="nearest",
    )
    every = -(-len(names) // _MOST_NAMES)
    shown = range(0, len(names), every)
    axis.set_yticks([row + 0.5 for row in shown], [_label(names[row]) for row in shown])
    axis.tick_params(axis="y", labelsize=6)
    axis.set_xlabel("log10 |gradient|; the first column holds zeros as well")
    axis.grid(visible=False)
    figure.colorbar(image, ax=axis, label="share of the tensor")
    return figure


def _label(name: str) -> str:
    return figures.name(name.replace(".net.", ".").removesuffix(".weight"))
