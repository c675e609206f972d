"""The heads of the study (Apavou & Zucker 2022, table 2), to reproduce its numbers.

Their names mean something else elsewhere: its "Linear" has a classifier per pixel of a patch, and
its "PUP" has no nonlinearity, so it is a low-rank linear probe.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.heads.base import SingleMapHead


class SeedLinear(SingleMapHead):
    """One linear layer from a token to all pixels of its patch."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__(channels, strides, num_classes)
        self.classify = nn.Conv2d(self.in_channels, self.stride**2 * num_classes, 1)

    def decode(self, x: Tensor) -> Tensor:
        """See `SingleMapHead.decode`."""
        return F.pixel_shuffle(self.classify(x), self.stride)


class SeedNaive(SingleMapHead):
    """1 x 1 of the same width with BatchNorm and ReLU, 1 x 1 to the classes; no LayerNorm."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__(channels, strides, num_classes)
        self.net = nn.Sequential(
            nn.Conv2d(self.in_channels, self.in_channels, 1),
            nn.BatchNorm2d(self.in_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(self.in_channels, num_classes, 1),
        )

    def decode(self, x: Tensor) -> Tensor:
        """See `SingleMapHead.decode`."""
        return self.net(x)


class SeedPUP(SingleMapHead):
    """1 x 1 convolutions with 2 x upsampling between them and nothing else: an affine map.

    Convolutions of size 1 commute with bilinear upsampling, so it equals one 1 x 1 convolution of
    rank at most `num_classes`, upsampled step by step.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__(channels, strides, num_classes)
        width = self.in_channels // 4
        # At patch 8 the study left out one convolution and one upsampling.
        count = 3 if self.stride == 8 else 4
        layers: list[nn.Module] = []
        for inputs in [self.in_channels] + [width] * (count - 1):
            layers += [
                nn.Conv2d(inputs, width, 1),
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            ]
        self.net = nn.Sequential(*layers, nn.Conv2d(width, num_classes, 1))

    def decode(self, x: Tensor) -> Tensor:
        """See `SingleMapHead.decode`."""
        return self.net(x)
