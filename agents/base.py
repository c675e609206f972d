"""What every task offers: a LightningModule, and what the trainer has to know of it."""

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
from utils.distributed import of_all_processes

NO_STEP = "No step was finished, so there is nothing to say about the loss."


def final_numbers(summary: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns `val`, or `train` where nothing was validated, and what summary.json has of it.

    The numbers are by their names in that split; without a `loss` no step was finished.
    """
    split = "val" if "val/loss" in summary else "train"
    prefix = f"{split}/"
    return split, {k.removeprefix(prefix): v for k, v in summary.items() if k.startswith(prefix)}


class Agent(LightningModule, ABC):
    """One task, from its settings to what its numbers mean.

    Attributes:
        monitor: the metric that chooses the best checkpoint, and `min` or `max`; None where no
            metric does, so that the last one counts.
        trains: whether there is something to train; else the run is its test.
        validates_untrained: whether such a run measures the held-out images as well.
        facts: what a table of results must say beside them.
        loss_width: option that says how many numbers of an image the loss holds, where these are
            many (`held_by_loss`).
        lr: peak learning rate, which the tuner may set.
        backbone: the network that is kept and looked at.
        settings: resolved.
    """

    monitor: ClassVar[tuple[str, str] | None] = None
    trains: bool = True
    validates_untrained: bool = False
    facts: Mapping[str, str] = {}
    loss_width: ClassVar[str] = ""
    lr: float
    backbone: Backbone
    settings: Hparams

    @property
    def trained_backbone(self) -> Backbone:
        """The network that gradients reach; the one that is kept, unless a task has two."""
        return self.backbone

    @property
    def from_weights(self) -> bool:
        """Whether the backbone started from weights."""
        return self.settings.backbone.weights != "none"

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """What the task is made of, by name, for the table at the start of a run."""
        return dict(self.named_children())

    @classmethod
    @abstractmethod
    def build(cls, hparams: Hparams, backbone: Backbone, source: ImageSource) -> Self:
        """Builds the agent around a backbone.

        Args:
            hparams: resolved settings.
            backbone: with its weights, frozen where the settings say so.
            source: the data set, for what the agent has to know of it, such as its classes.
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
        """Returns the sides of what passes the backbone for one image in a training step.

        Args:
            sizes: of the views that are loaded; all that passes, unless a task makes more of them.
        """
        return sizes

    def passes_again(self, sizes: tuple[int, ...], chunks: int) -> tuple[int, ...]:
        """Returns the sides of what passes a backbone once more for one image, without gradient.

        Args:
            sizes: of the views that are loaded.
            chunks: in which the images of a step pass, 0 where `chunk_size` is null. What is in
                several passes once more for the gradient.
        """
        return self.passes(sizes) if chunks > 1 and not self.trained_backbone.frozen else ()

    def held_by_loss(self, images: int, chunk: int | None) -> int:
        """Returns the bytes that the loss holds of a batch, beside the backbone's activations.

        Nothing worth counting, unless a task has a loss of many numbers.

        Args:
            images: of the batch, in this process.
            chunk: `chunk_size`; None: all of them pass at once.
        """
        return 0

    def load_weights(self, hparams: Hparams) -> None:
        """Loads weights into what stands on the backbone; nothing, unless a task has some.

        Raises:
            FileNotFoundError, ValueError: they are not there, or do not fit.
        """

    def prepare(
        self,
        data: ImageDataModule,
        hparams: Hparams,
        device: torch.device,
        checkpoint: Path | None,
    ) -> None:
        """Does what has to be done once before training; nothing, unless a task says otherwise.

        Args:
            data: listed, of the same task.
            hparams: resolved settings.
            device: that will train.
            checkpoint: of a run that is continued, whose weights the agent gets only later.
        """

    def setup(self, stage: str) -> None:
        """Compiles what is fitted: a tuner fits copies, which have their own pass.

        Raises:
            ValueError: BatchNorm over processes that see different numbers of chunks would wait
                for ever.
        """
        if stage != "fit":
            return
        options = self.settings.trainer
        if options.sync_batchnorm:
            _check_same(of_all_processes(options.chunk_size))
        if options.compile:
            self.compile_training_pass()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Averages over the batches of a step, of which an epoch's last may have fewer.

        Lightning divides the loss of each by `trainer.accumulate`, however many there are.
        """
        loop, together = self.trainer.fit_loop.epoch_loop, self.trainer.accumulate_grad_batches
        before = loop.batch_idx // together * together
        there = min(together, int(self.trainer.num_training_batches) - before)
        super().backward(loss if there == together else loss * together / there, *args, **kwargs)

    def compile_training_pass(self) -> None:
        """Compiles how images pass the backbone in training; nothing, unless a task says how."""

    def moved(self, images: Tensor) -> Tensor:
        """Returns images on the agent's device, without waiting for what it has yet to do there."""
        return images.to(self.device, non_blocking=True)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Leaves micro-batches on the host, from where they are moved one at a time."""
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
