"""The interface of attention fusions, which bring a backbone's attention to any head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.backbones.base import Features


class Fusion(nn.Module, ABC):
    """Enriches features before the head, or refines its logits after it.

    Built from `channels` and `strides` of the maps, `num_classes`, and the number of `heads` of
    every block whose attention is given.

    Attributes:
        channels: C of each map that the head gets.
    """

    channels: tuple[int, ...]

    def edges(self, features: Features) -> Tensor | None:
        """Returns the graph between patches, `(B, h*w, h*w)`, rows summing to 1; None without."""
        return None

    def enrich(self, features: Features, edges: Tensor | None) -> Features:
        """Returns the features for the head.

        Args:
            features: of the backbone, enriched by the fusions before this one.
            edges: the result of `edges` for them.
        """
        return features

    def refine(self, logits: Tensor, features: Features, edges: Tensor | None) -> Tensor:
        """Returns refined logits `(B, num_classes, h, w)`.

        Args:
            logits: the head's, at its own resolution.
            features: the same that `enrich` got.
            edges: the same that `enrich` got.
        """
        return logits

    def looking(
        self, logits: Tensor, features: Features, edges: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Refines, and returns which patches every class attended to.

        Returns:
            The logits of `refine`, and maps `(B, num_classes, h, w)` that sum to 1; None if classes
            do not attend to patches.
        """
        return self.refine(logits, features, edges), None

    def scalars(self) -> Sequence[nn.Parameter]:
        """Returns the parameters that learn at a multiple of the head's learning rate."""
        return ()

    @abstractmethod
    def learnt(self) -> dict[str, float]:
        """Returns values by name that show whether the attention is used."""


def attention_maps(features: Features) -> list[Tensor]:
    """Returns the attention of CLS over the patches for each block, `(B, heads, h, w)`.

    Without a CLS token, it is the attention that patches receive.
    """
    given = features.attention or [
        each.rows("cls" if each.has_cls else "mean") for each in features.factors or ()
    ]
    return [each.patch_maps()[:, :, 0] for each in given]


def log_maps(maps: Tensor) -> Tensor:
    """Returns log(N a), which is 0 where attention is uniform.

    BatchNorm could not scale raw attention: over N patches it varies by less than its epsilon.
    """
    return torch.log(maps * (maps.shape[-2] * maps.shape[-1]) + 1e-6)
