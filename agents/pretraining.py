"""Pretraining: a backbone that is trained on views of images, without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from agents.base import Agent
from config.hparams import Hparams
from datamodules.sources import ImageSource
from models.backbones.base import Backbone
from models.head_information import HeadInformation
from models.memory.chunking import forward_in_chunks


class Pretraining(Agent):
    """How images pass the backbone that is trained: at once, in chunks, or for their features only.

    Args:
        backbone: that is trained.
        hparams: groups `head_information`, `optim`, `trainer`, and the method's own.

    Attributes:
        information: a term on the heads of the backbone, beside any method's loss; its column is
            the last of the pooled features where it counts.
    """

    def __init__(self, backbone: Backbone, hparams: Hparams) -> None:
        super().__init__()
        backbone.check_side(int(hparams.data.image_size), "data.image_size")
        self.settings = hparams
        self.lr = float(hparams.optim.lr)
        information = hparams.head_information
        self.information = HeadInformation(backbone, information.weight, information.blocks)
        self.training_pass = self._pool

    @classmethod
    def build(cls, hparams: Hparams, backbone: Backbone, source: ImageSource) -> Self:
        """See `Agent.build`."""
        return cls(backbone, hparams)

    def _pool(self, images: Tensor) -> Tensor:
        return self.information.pooled(self.trained_backbone, images)

    def compile_training_pass(self) -> None:
        """See `Agent`. Once for each size of views, and not for any size."""
        self.training_pass = torch.compile(self._pool, dynamic=False)

    def pooled_once(self, chunks: Sequence[Tensor]) -> Tensor:
        """Returns the pooled features `(N, D)` of micro-batches, whose activations are kept.

        Args:
            chunks: `(n, 3, H, W)` uint8 each, which may be on the host.
        """
        return torch.cat([self._pool(self.moved(chunk)) for chunk in chunks])

    def pooled_in_chunks(self, chunks: Sequence[Tensor]) -> Tensor:
        """Returns the same; activations are those of one chunk, and computed again for it."""
        return forward_in_chunks(self.trained_backbone, self._pool, chunks, self.device)

    def log_step(
        self,
        split: str,
        loss: Tensor,
        scalars: Mapping[str, Tensor | float],
        images: int,
        apart: bool = False,
    ) -> None:
        """Logs what a step came to; of training also its learning rate.

        Args:
            split: `train` or `val`.
            loss: the method's own.
            scalars: what else there is, by name.
            images: that it is of.
            apart: whether those are of this process alone, so that the loss is a mean over all.
        """
        named = {f"{split}/{name}": value for name, value in scalars.items()}
        if split == "train" and self.trainer.optimizers:
            named["train/lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log(f"{split}/loss", loss.detach(), prog_bar=True, batch_size=images, sync_dist=apart)
        # To wait for the other processes in every training step would cost more than they tell.
        self.log_dict(named, batch_size=images, sync_dist=apart and split == "val")
