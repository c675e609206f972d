"""Pretraining: a backbone that is trained on views of images, without labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from agents.base import Agent
from config.hparams import Hparams
from datamodules.sources import ImageSource
from models.backbones.base import Backbone
from models.head_information import HeadInformation
from models.memory.chunking import forward_in_chunks


class Pretraining(Agent):
    """Passes images through the trained backbone, at once or in chunks, and logs steps.

    Args:
        backbone: is trained.
        hparams: groups `head_information`, `optim`, `trainer`, and the method's own.

    Attributes:
        information: an optional loss term on the backbone's attention heads; if its weight is not
            0, its values are the last column of the pooled features.
    """

    def __init__(self, backbone: Backbone, hparams: Hparams) -> None:
        super().__init__()
        backbone.check_side(int(hparams.data.image_size), "data.image_size")
        self.settings = hparams
        information = hparams.head_information
        self.information = HeadInformation(backbone, information.weight, information.blocks)
        self.training_pass = self._pool

    @classmethod
    def build(cls, hparams: Hparams, backbone: Backbone, source: ImageSource) -> Self:
        """See `Agent.build`."""
        return cls(backbone, hparams)

    @abstractmethod
    def verdict(self, split: str, numbers: Mapping[str, float]) -> list[str]:
        """Says what the final numbers of a split mean, for a run that has not collapsed.

        Args:
            split: `val`, or `train` if nothing was validated.
            numbers: `loss`, and the scalars that the method logs, by name.
        """

    def collapse(self, numbers: Mapping[str, float]) -> list[str]:
        """Says so if the final numbers show that the network has collapsed."""
        return []

    def in_words(self, summary: Mapping[str, Any]) -> list[str]:
        """Says what the final numbers mean."""
        split = "val" if "val/loss" in summary else "train"
        prefix = f"{split}/"
        numbers = {k.removeprefix(prefix): v for k, v in summary.items() if k.startswith(prefix)}
        if "loss" not in numbers:
            return ["No step was finished, so there is nothing to say about the loss."]
        return self.collapse(numbers) or self.verdict(split, numbers)

    def _pool(self, images: Tensor) -> Tensor:
        return self.information.pooled(self.trained_backbone, images)

    def compile_training_pass(self) -> None:
        """See `Agent`. Compiled once per view size, without dynamic shapes."""
        self.training_pass = torch.compile(self._pool, dynamic=False)

    def pooled_once(self, chunks: Sequence[Tensor]) -> Tensor:
        """Returns the pooled features `(N, D)` of micro-batches, and keeps their activations.

        Args:
            chunks: `(n, 3, H, W)` uint8 each, which may be on the host.
        """
        return torch.cat([self._pool(self.moved(chunk)) for chunk in chunks])

    def pooled_in_chunks(self, chunks: Sequence[Tensor]) -> Tensor:
        """Returns the same, but recomputes activations for the gradient, one chunk at a time."""
        return forward_in_chunks(self.trained_backbone, self._pool, chunks, self.device)

    def log_step(
        self,
        split: str,
        loss: Tensor,
        scalars: Mapping[str, Tensor | float],
        images: int,
        apart: bool = False,
    ) -> None:
        """Logs loss and scalars of a step; in training also the learning rate.

        Args:
            split: `train` or `val`.
            loss: the method's own.
            scalars: what else to log, by name.
            images: number of images in the step.
            apart: whether the values cover this process only, so that the loss is averaged.
        """
        named = {f"{split}/{name}": value for name, value in scalars.items()}
        if split == "train" and self.trainer.optimizers:
            named["train/lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log(f"{split}/loss", loss.detach(), prog_bar=True, batch_size=images, sync_dist=apart)
        # In training the scalars are not averaged: waiting in every step would cost too much.
        self.log_dict(named, batch_size=images, sync_dist=apart and split == "val")
