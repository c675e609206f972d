"""The linear probe of patches (Segmenter, Strudel et al. 2021; DINOv2, Oquab et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.heads.base import SingleMapHead


class Linear(SingleMapHead):
    """One 1 x 1 convolution, then bilinear upsampling: separates classes by hyperplanes."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__(channels, strides, num_classes)
        self.classify = nn.Conv2d(self.in_channels, num_classes, 1)

    def decode(self, x: Tensor) -> Tensor:
        """See `SingleMapHead.decode`."""
        return self.classify(x)
