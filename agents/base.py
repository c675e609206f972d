"""The base class of all tasks: a LightningModule, and what the trainer needs to know about it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from config.hparams import Hparams
from datamodules.base import ImageDataModule
from datamodules.loading import Batch, Loading
from datamodules.sources import ImageSource
from models.backbones.base import Backbone
from utils.device import moved
from utils.distributed import of_all_processes


class Agent(LightningModule, ABC):
    """One task, from its settings to what its numbers mean.

    Attributes:
        monitor: the metric that chooses the best checkpoint, and `min` or `max`; None: no metric
            does, and the last checkpoint counts.
        trains: whether there is something to train; otherwise the run only tests.
        validates_untrained: whether a run that does not train still measures the held-out images.
        facts: what a table must state beside the numbers, such as the protocol.
        loss_width: option that sets how many values per image the loss keeps, where these are
            many (`held_by_loss`).
        backbone: the network that is saved and inspected.
        settings: resolved settings.
    """

    monitor: ClassVar[tuple[str, str] | None] = None
    trains: bool = True
    validates_untrained: bool = False
    facts: Mapping[str, str] = {}
    loss_width: ClassVar[str] = ""
    backbone: Backbone
    settings: Hparams

    @property
    def lr(self) -> float:
        """Peak learning rate; Lightning's tuner finds and sets it by this name."""
        return float(self.settings.optim.lr)

    @lr.setter
    def lr(self, value: float) -> None:
        self.settings.optim.lr = value

    @property
    def trained_backbone(self) -> Backbone:
        """The network that gradients reach; the same as `backbone`, unless a task has two."""
        return self.backbone

    @property
    def from_weights(self) -> bool:
        """Whether the backbone started from weights."""
        return self.settings.backbone.weights != "none"

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """The task's modules by name, for the table at the start of a run."""
        return dict(self.named_children())

    @classmethod
    @abstractmethod
    def build(cls, hparams: Hparams, backbone: Backbone, source: ImageSource) -> Self:
        """Builds the agent around a backbone.

        Args:
            hparams: resolved settings.
            backbone: with its weights, frozen where the settings say so.
            source: the data set, which knows for example the classes.
        """

    @staticmethod
    @abstractmethod
    def data(source: ImageSource, hparams: Hparams, loading: Loading) -> ImageDataModule:
        """Returns the data set as this task loads it."""

    @abstractmethod
    def in_words(self, summary: Mapping[str, Any]) -> list[str]:
        """Says what the final numbers of summary.json mean, in sentences."""

    def warnings(self) -> list[str]:
        """Says which settings are known to fail, before hours are spent on them."""
        return []

    def passes(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the side of each input to the backbone that one image causes in a training step.

        Args:
            sizes: sides of the loaded views; these are the inputs, unless a task makes more, or
                none, because features are computed once.
        """
        return sizes

    def passes_again(self, sizes: tuple[int, ...], chunks: int) -> tuple[int, ...]:
        """Returns the side of each input of one image that passes a backbone without gradient.

        Args:
            sizes: sides of the loaded views.
            chunks: number of chunks of a step, 0 if `chunk_size` is null. With several, all inputs
                pass once without gradient and are recomputed for it.
        """
        return self.passes(sizes) if chunks > 1 and not self.trained_backbone.frozen else ()

    def held_by_loss(self, images: int, chunk: int | None) -> int:
        """Returns the bytes that the loss keeps for a batch, besides the backbone's activations.

        Negligible, and 0 here, unless the loss keeps many values per image.

        Args:
            images: number of images of the batch in this process.
            chunk: `chunk_size`; None: the whole batch passes at once.
        """
        return 0

    def load_weights(self) -> None:
        """Loads weights into the modules on top of the backbone; by default there are none.

        Raises:
            FileNotFoundError, ValueError: the weights are missing, or do not fit.
        """

    def prepare(self, data: ImageDataModule, device: torch.device, checkpoint: Path | None) -> None:
        """Does what must be done once before training; by default nothing.

        Args:
            data: of the same task, its images listed.
            device: will train the agent.
            checkpoint: of a run to resume, whose weights the agent gets only later.
        """

    def setup(self, stage: str) -> None:
        """Compiles the training pass; here, because a tuner fits copies that need their own.

        Raises:
            ValueError: processes have different chunk sizes, so that synchronised BatchNorm would
                wait for ever.
        """
        if stage != "fit":
            return
        options = self.settings.trainer
        if options.sync_batchnorm:
            _check_same(of_all_processes(options.chunk_size))
        if options.compile:
            self.compile_training_pass()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Averages over the batches accumulated in a step, also in an epoch's shorter last step.

        Lightning always divides by `trainer.accumulate`, even if fewer batches are left.
        """
        loop, accumulate = self.trainer.fit_loop.epoch_loop, self.trainer.accumulate_grad_batches
        first = loop.batch_idx // accumulate * accumulate
        batches = min(accumulate, int(self.trainer.num_training_batches) - first)
        scaled = loss if batches == accumulate else loss * accumulate / batches
        super().backward(scaled, *args, **kwargs)

    def compile_training_pass(self) -> None:
        """Compiles the training pass through the backbone; by default there is none to compile."""

    def moved(self, images: Tensor) -> Tensor:
        """Returns images on the agent's device, without waiting for the copy."""
        return moved(images, self.device)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Leaves micro-batches on the host; they are moved one at a time (`moved`)."""
        if isinstance(batch, Batch):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)


def _check_same(chunk_sizes: Sequence[int | None]) -> None:
    if len(set(chunk_sizes)) > 1:
        sizes = [size for size in chunk_sizes if size is not None]
        chosen = ", ".join(str(size or "null") for size in chunk_sizes)
        raise ValueError(
            f"--trainer.chunk_size auto: processes have different free memory and chose {chosen}, "
            f"but --trainer.sync_batchnorm needs one for all: --trainer.chunk_size {min(sizes)}."
        )
