"""Mixed images of a batch (Mixed Barlow Twins, Bandara et al. 2023, arXiv 2312.02151)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixing:
    """x_m = α x1 + (1 - α) π(x2): each image's first view with another image's second.

    Attributes:
        alpha: α.
        order: π, `(n,)`: which image's second view each one gets.
    """

    alpha: float
    order: Tensor

    @classmethod
    def draw(cls, count: int, generator: torch.Generator) -> Self:
        """Draws α uniformly from 0 … 1, which is Beta(1, 1), and a permutation of the images."""
        alpha = float(torch.rand((), generator=generator))
        return cls(alpha, torch.randperm(count, generator=generator))

    def images(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
        """Mixes two views of the whole batch.

        Args:
            first: micro-batches `(k, 3, H, W)` uint8, k summing to n.
            second: the same of the other view.

        Returns:
            Micro-batches of the sizes of `first`, rounded to uint8 as all images are.
        """
        others = torch.cat(list(second))[self.order].split([len(chunk) for chunk in first])
        pairs = zip(first, others, strict=True)
        return [torch.lerp(b.float(), a.float(), self.alpha).round().byte() for a, b in pairs]

    def over(self, processes: int) -> Tensor:
        """Returns the permutation of the images of all processes; each process mixes its own n."""
        count = len(self.order)
        return torch.cat([self.order + rank * count for rank in range(processes)])
