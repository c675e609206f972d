"""The common part of pictures: how to look into an agent without leaving a trace."""

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

from datamodules.base import ImageDataModule
from datamodules.loading import Batch
from models.backbones.base import Backbone
from utils.console import console
from utils.palette import palette
from utils.rng import CPU, rng_preserved

_IMAGES_AT_ONCE = 64


@runtime_checkable
class Classifies(Protocol):
    """An agent with named classes and confusion matrices.

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
        trained_backbone: the network that gradients reach. A property: from Python 3.12 on,
            isinstance does not see the modules that a module holds.
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
        """Returns the loss of a training step for a batch, or for a part of one.

        Nothing is logged or collected; BatchNorm statistics and random states change as usual.
        """
        ...


def weights_of(trainer: Trainer) -> str:
    """Says which weights are inspected: `step 40`, or in the test the chosen checkpoint.

    That need not be of the last step, at which the trainer still stands.
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
    """Returns the last confusion matrix of a split; None before there is one."""
    return module.confusion.get(split) if isinstance(module, Classifies) else None


def held_out_examples(
    trainer: Trainer, backbone: Backbone, count: int, enlarged: int = 1
) -> tuple[Tensor, str]:
    """Returns validation images, or training images if there are none, and the split's name.

    Args:
        trainer: of the run.
        backbone: the side of the images is a multiple of its patches.
        count: number of images.
        enlarged: factor of their side over that of the training crops.
    """
    data = data_of(trainer)
    split = "val" if len(data.val_files) else "train"
    return data.examples(split, count, backbone.side_near(enlarged * data.image_size)), split


def pooled_features(backbone: Backbone, images: Tensor) -> Tensor:
    """Returns the pooled features `(N, D)` of images `(N, 3, S, S)` uint8, on its device.

    Call it inside `inspecting`.
    """
    device = backbone.mean.device
    parts = [backbone(part.to(device)).pooled for part in images.split(_IMAGES_AT_ONCE)]
    return torch.cat(parts).float()


def device_of(module: nn.Module) -> torch.device:
    """Returns the device of a module."""
    return next((parameter.device for parameter in module.parameters()), CPU)


@contextmanager
def inspecting(module: nn.Module, precision: Precision | None = None) -> Iterator[None]:
    """Sets eval mode without gradients; restores flags and random states afterwards.

    cuDNN's search for fast algorithms, which training uses (`agents.lightning`), is off inside:
    readouts see images of many sizes, each of them once.

    Args:
        module: is inspected.
        precision: of the run, so that the network computes as in training, for example in bf16.
    """
    flags = [(part, part.training) for part in module.modules()]
    benchmark = torch.backends.cudnn.benchmark
    context = nullcontext() if precision is None else precision.forward_context()
    with rng_preserved(device_of(module)), torch.no_grad(), context:
        for part, _ in flags:
            part.training = False
        torch.backends.cudnn.benchmark = False
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = benchmark
            for part, training in flags:
                part.training = training


class SayOnce:
    """Prints each message only once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    @rank_zero_only
    def __call__(self, text: str) -> None:
        """Prints `text` unless it was printed before."""
        if text not in self._said:
            self._said.add(text)
            console.info("%s", text)
