"""The contract of attention fusions: parts that bring a backbone's attention to any head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.backbones.base import Features


class Fusion(nn.Module, ABC):
    """Enriches features before the head, or refines its logits after it.

    Built from `channels` and `strides` of the maps, `num_classes` and the `heads` of every block
    whose attention is given.

    Attributes:
        channels: C of each of the maps that the head gets.
    """

    channels: tuple[int, ...]

    def edges(self, features: Features) -> Tensor | None:
        """Returns the graph between patches that is used, `(B, h*w, h*w)`, rows summing to 1."""
        return None

    def enrich(self, features: Features, edges: Tensor | None) -> Features:
        """Returns what the head sees.

        Args:
            features: those of the backbone, as fusions before this one enriched them.
            edges: that `edges` found in them.
        """
        return features

    def refine(self, logits: Tensor, features: Features, edges: Tensor | None) -> Tensor:
        """Returns better logits `(B, num_classes, h, w)`.

        Args:
            logits: the head's, at its own resolution.
            features: as they came to `enrich`.
            edges: the same.
        """
        return logits

    def looking(
        self, logits: Tensor, features: Features, edges: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Refines, and returns what every class looked at to that end.

        Returns:
            The logits of `refine`, and `(B, num_classes, h, w)`, summing to 1 each; None, unless
            classes look at patches.
        """
        return self.refine(logits, features, edges), None

    def scalars(self) -> Sequence[nn.Parameter]:
        """Returns the parameters that learn at a multiple of the head's rate."""
        return ()

    @abstractmethod
    def learnt(self) -> dict[str, float]:
        """Returns by name what tells whether the attention is used."""


def attention_maps(features: Features) -> list[Tensor]:
    """Returns the attention of CLS over the patches for each block, `(B, heads, h, w)`.

    The attention patches receive where there is no CLS token.
    """
    given = features.attention or [
        each.rows("cls" if each.has_cls else "mean") for each in features.factors or ()
    ]
    return [each.patch_maps()[:, :, 0] for each in given]


def log_maps(maps: Tensor) -> Tensor:
    """Returns log(N a): 0 where attention is uniform.

    Raw attention over N patches varies by less than BatchNorm's epsilon.
    """
    return torch.log(maps * (maps.shape[-2] * maps.shape[-1]) + 1e-6)
