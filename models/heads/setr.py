"""SETR's three decoders (Zheng et al. 2021, arXiv 2012.15840, section 3.3 and official code)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from models.backbones.base import Features
from models.heads.base import Head, SingleMapHead, conv_bn_relu, resize, size_of

WIDTH = 256
_MLA_WIDTH = 128
_MLA_LAYERS = 4


class SETRNaive(SingleMapHead):
    """LayerNorm, 1 x 1 to 256 with BatchNorm and ReLU, 1 x 1 to the classes, upsampling."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__(channels, strides, num_classes)
        self.net = nn.Sequential(
            LayerNorm2d(self.in_channels, eps=1e-6),
            conv_bn_relu(self.in_channels, WIDTH, 1, bias=True),
            nn.Conv2d(WIDTH, num_classes, 1),
        )

    def decode(self, x: Tensor) -> Tensor:
        """See `SingleMapHead.decode`."""
        return self.net(x)


class SETRPUP(SingleMapHead):
    """Progressive upsampling: four 3 x 3 convolutions, each followed by upsampling by 2.

    The last upsampling comes after the classifier. If fewer than four are needed to reach the image
    (patch 8: three), the first convolutions have none; if four are not enough (patch 32), the final
    resize does the rest.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__(channels, strides, num_classes)
        doublings = min(4, max(1, round(math.log2(self.stride)))) - 1
        layers: list[nn.Module] = [LayerNorm2d(self.in_channels, eps=1e-6)]
        for number, width in enumerate((self.in_channels, WIDTH, WIDTH, WIDTH)):
            layers.append(conv_bn_relu(width, WIDTH, 3, bias=True))
            if 3 - doublings <= number < 3:
                layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        self.net = nn.Sequential(*layers, nn.Conv2d(WIDTH, num_classes, 1))

    def decode(self, x: Tensor) -> Tensor:
        """See `SingleMapHead.decode`."""
        return self.net(x)


class SETRMLA(Head):
    """Multi-level aggregation of four layers: from the deepest on, each is added to the next.

    Raises:
        ValueError: there are not four layers.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__()
        if len(channels) != _MLA_LAYERS:
            raise ValueError(
                f"--segmentation.head setr_mla reads {_MLA_LAYERS} layers, got {len(channels)}: "
                "set --backbone.layers, for a ViT of 12 blocks e.g. 2,5,8,11."
            )
        self.reduce = nn.ModuleList(conv_bn_relu(width, WIDTH, 1) for width in channels)
        self.smooth = nn.ModuleList(conv_bn_relu(WIDTH, WIDTH, 3) for _ in channels)
        self.streams = nn.ModuleList(
            nn.Sequential(
                conv_bn_relu(WIDTH, _MLA_WIDTH, 3), conv_bn_relu(_MLA_WIDTH, _MLA_WIDTH, 3)
            )
            for _ in channels
        )
        self.classify = nn.Conv2d(_MLA_LAYERS * _MLA_WIDTH, num_classes, 3, padding=1)
        self.finest = min(strides)

    def native(self, features: Features) -> Tensor:
        """See `Head.native`."""
        reduced = [conv(x) for conv, x in zip(self.reduce, features.maps, strict=True)]
        summed = [reduced[-1]]
        for x in reversed(reduced[:-1]):
            summed.insert(0, x + resize(summed[0], size_of(x)))
        smooth = [conv(x) for conv, x in zip(self.smooth, summed, strict=True)]
        # Four times the grid, but not larger than the image.
        scale = min(4, self.finest)
        finest = max(map(size_of, smooth))
        target = (finest[0] * scale, finest[1] * scale)
        streams = [resize(conv(x), target) for conv, x in zip(self.streams, smooth, strict=True)]
        return self.classify(torch.cat(streams, 1))
