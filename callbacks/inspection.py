"""What pictures have in common: when to draw, and how to look without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.precision import Precision
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn

from callbacks.progress import epochs_of
from datamodules.base import ImageDataModule
from datamodules.loading import Batch
from models.backbones.base import Backbone
from utils.console import console
from utils.palette import palette
from utils.rng import CPU, rng_preserved

_IMAGES_AT_ONCE = 64


@runtime_checkable
class Classifies(Protocol):
    """An agent with named classes and counts of what it took for what.

    Attributes:
        classes: names by label.
        confusion: the last counts by split, `(C, C)`, rows the truth.
    """

    classes: tuple[str, ...]
    confusion: dict[str, Tensor]


@runtime_checkable
class Learner(Protocol):
    """An agent that is pretrained on batches of views.

    Attributes:
        trained_backbone: the network that gradients reach.
        from_weights: whether it started from weights.
    """

    @property
    def from_weights(self) -> bool:
        """See above."""
        ...

    @property
    def trained_backbone(self) -> Backbone:
        """See above."""
        ...

    def batch_loss(self, batch: Batch) -> Tensor:
        """Returns what the training step minimises for a batch, which may be a part of its own.

        Nothing is logged or collected; BatchNorm statistics and random states move as in any pass.
        """
        ...


def due(trainer: Trainer, every_n_epochs: int) -> bool:
    """Whether to draw in this epoch: the first, every nth after it, and the last.

    Of validations, which may be rarer than epochs, the first from each of these on.
    """
    return trainer.current_epoch % every_n_epochs < epochs_at_once(trainer) or last_epoch(trainer)


def epochs_at_once(trainer: Trainer) -> int:
    """Returns the epochs that are looked at: one, in a validation those from one to the next."""
    return (trainer.check_val_every_n_epoch or 1) if trainer.validating else 1


def last_epoch(trainer: Trainer) -> bool:
    """Whether training ends with this epoch, or without another validation."""
    coming = trainer.current_epoch + epochs_at_once(trainer)
    last = coming >= epochs_of(trainer) or trainer.should_stop
    return last or (trainer.max_steps > 0 and trainer.global_step >= trainer.max_steps)


def weights_of(trainer: Trainer) -> str:
    """Says which weights are looked at: `step 40`; at the test those of the chosen checkpoint.

    They need not be the last step's, where the trainer still stands.
    """
    return "chosen checkpoint" if trainer.testing else f"step {trainer.global_step}"


def data_of(trainer: Trainer) -> ImageDataModule:
    """Returns the data module of a run."""
    data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
    return data


def backbone_of(module: nn.Module) -> Backbone:
    """Returns the eager backbone of an agent.

    Raises:
        TypeError: the agent has none.
    """
    backbone = getattr(module, "backbone", None)
    if not isinstance(backbone, Backbone):
        raise TypeError(f"{type(module).__name__} has no backbone to look into.")
    return backbone


def class_names(module: nn.Module) -> tuple[str, ...]:
    """Returns the classes of an agent.

    Raises:
        TypeError: the agent has none.
    """
    if not isinstance(module, Classifies):
        raise TypeError(f"{type(module).__name__} has no classes.")
    return module.classes


@runtime_checkable
class Paints(Protocol):
    """An agent whose labels have colours in pictures, `(256, 3)`."""

    colours: NDArray[np.uint8]


def class_colours(module: nn.Module) -> NDArray[np.uint8]:
    """Returns the colours of an agent's labels, `(256, 3)`: its own, or those of `palette`."""
    if isinstance(module, Paints):
        return module.colours
    return palette(module.classes if isinstance(module, Classifies) else ())


def confusion_of(module: nn.Module, split: str) -> Tensor | None:
    """Returns the last counts of a split, None before there are any."""
    return module.confusion.get(split) if isinstance(module, Classifies) else None


def held_out_examples(
    trainer: Trainer, backbone: Backbone, count: int, enlarged: int = 1
) -> tuple[Tensor, str]:
    """Returns validation images, training images where there are none, and which they are.

    Args:
        trainer: of the run.
        backbone: their side is a multiple of its patches.
        count: how many.
        enlarged: their side over that of the training crops.
    """
    data = data_of(trainer)
    split = "val" if len(data.val_files) else "train"
    return data.examples(split, count, backbone.side_near(enlarged * data.image_size)), split


def pooled_features(backbone: Backbone, images: Tensor) -> Tensor:
    """Returns the pooled features `(N, D)` of images `(N, 3, S, S)` uint8, on its device.

    To be called while `inspecting`.
    """
    device = backbone.mean.device
    parts = [backbone(part.to(device)).pooled for part in images.split(_IMAGES_AT_ONCE)]
    return torch.cat(parts).float()


def device_of(module: nn.Module) -> torch.device:
    """Returns where a module lives."""
    return next((parameter.device for parameter in module.parameters()), CPU)


@contextmanager
def inspecting(module: nn.Module, precision: Precision | None = None) -> Iterator[None]:
    """Eval mode, no gradients; flags and random states are as before afterwards.

    On a GPU cuDNN tries out no algorithms meanwhile, as it does for each size of training images
    (`agents.lightning`): readouts see images of many sizes, each of them once.

    Args:
        module: that is looked into.
        precision: of the run: the network is seen as it trains, in half precision if it does.
    """
    flags = [(part, part.training) for part in module.modules()]
    tries_out = torch.backends.cudnn.benchmark
    seen = nullcontext() if precision is None else precision.forward_context()
    with rng_preserved(device_of(module)), torch.no_grad(), seen:
        for part, _ in flags:
            part.training = False
        torch.backends.cudnn.benchmark = False
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = tries_out
            for part, training in flags:
                part.training = training


class SayOnce:
    """Tells the user something once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    @rank_zero_only
    def __call__(self, text: str) -> None:
        """Prints `text` unless it was printed before."""
        if text not in self._said:
            self._said.add(text)
            console.info("%s", text)
