"""Fully convolutional head (Long et al. 2015), with two convolutions as in mmsegmentation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.heads.base import SingleMapHead, conv_bn_relu

WIDTH = 512


class FCN(SingleMapHead):
    """Two 3 x 3 convolutions; concatenated with their input, a third, dropout 0.1 and a 1 x 1."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__(channels, strides, num_classes)
        self.convs = nn.Sequential(
            conv_bn_relu(self.in_channels, WIDTH, 3), conv_bn_relu(WIDTH, WIDTH, 3)
        )
        self.join = conv_bn_relu(self.in_channels + WIDTH, WIDTH, 3)
        self.classify = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(WIDTH, num_classes, 1))

    def decode(self, x: Tensor) -> Tensor:
        """See `SingleMapHead.decode`."""
        return self.classify(self.join(torch.cat([x, self.convs(x)], 1)))
