"""SegFormer's all-MLP decoder (Xie et al. 2021, arXiv 2105.15203, section 3.2, eq. 4)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.backbones.base import Features
from models.heads.base import Head, concatenated, conv_bn_relu

WIDTH = 256
DROPOUT = 0.1


class SegFormerMLP(Head):
    """Projects each map to 256 channels at the finest resolution, fuses and classifies them.

    Made for a pyramid (a Swin's or ResNet's four stages); several layers of a ViT work as well.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(width, WIDTH, 1) for width in channels)
        self.fuse = conv_bn_relu(WIDTH * len(channels), WIDTH, 1)
        self.classify = nn.Sequential(nn.Dropout2d(DROPOUT), nn.Conv2d(WIDTH, num_classes, 1))

    def native(self, features: Features) -> Tensor:
        """See `Head.native`."""
        projected = [project(x) for project, x in zip(self.project, features.maps, strict=True)]
        return self.classify(self.fuse(concatenated(projected)))
