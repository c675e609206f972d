"""The interface of segmentation heads: `Features` to logits of every pixel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones.base import Features
from utils.weight_files import Source

Size = tuple[int, int]


class Head(nn.Module, ABC):
    """From maps to logits; built from `channels` and `strides` of the maps, and `num_classes`.

    Attributes:
        sources: public weights by name.
    """

    sources: ClassVar[Mapping[str, Source]] = {}

    @abstractmethod
    def native(self, features: Features) -> Tensor:
        """Returns logits `(B, num_classes, h, w)` at the head's own resolution."""

    def forward(self, features: Features, size: Size) -> Tensor:
        """Returns logits `(B, num_classes, *size)`, resized bilinearly."""
        return resize(self.native(features), size)


class SingleMapHead(Head):
    """A head on one map; several layers are concatenated at the finest resolution among them.

    Args:
        channels: C of each map.
        strides: image pixels per cell of each map.
        num_classes: logits per pixel.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.in_channels = sum(channels)
        self.stride = min(strides)
        self.num_classes = num_classes

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """Turns `(B, in_channels, h, w)` into logits at any resolution."""

    def native(self, features: Features) -> Tensor:
        """See `Head.native`."""
        return self.decode(concatenated(features.maps))


def size_of(x: Tensor) -> Size:
    """Height and width of images or maps `(…, h, w)`."""
    return x.shape[-2], x.shape[-1]


def concatenated(maps: Sequence[Tensor]) -> Tensor:
    """Concatenates maps along the channels, resized to the largest of them."""
    largest = max(map(size_of, maps))
    return torch.cat([resize(each, largest) for each in maps], 1)


def resize(x: Tensor, size: Size) -> Tensor:
    """Resizes `(B, C, h, w)` bilinearly, if its size differs."""
    if size_of(x) == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def conv_bn_relu(inputs: int, outputs: int, kernel: int, bias: bool = False) -> nn.Sequential:
    """Convolution with `same` padding, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
