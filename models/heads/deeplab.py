"""DeepLabV3's head (Chen et al. 2017), torchvision's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

from torch import Tensor
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from models.backbones.resnet import COCO
from models.heads.base import SingleMapHead
from utils.weight_files import Source, download

RATES = (12, 24, 36)
NATIVE_STRIDE = 8


class DeepLabV3(SingleMapHead):
    """Atrous spatial pyramid pooling, at rates 12, 24, 36 for maps of stride 8.

    Rates are scaled down for coarser maps, to 6, 12, 18 at stride 16: a rate larger than the grid
    sees only padding. Its image pooling has a BatchNorm, so training needs at least two images.
    `coco` weights: torchvision's, trained with a ResNet-50 on the COCO images of VOC's classes.
    """

    sources: ClassVar[Mapping[str, Source]] = {"coco": partial(download, COCO)}

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__(channels, strides, num_classes)
        rates = [max(1, rate * NATIVE_STRIDE // max(NATIVE_STRIDE, self.stride)) for rate in RATES]
        self.classifier = DeepLabHead(self.in_channels, num_classes, rates)

    def decode(self, x: Tensor) -> Tensor:
        """See `SingleMapHead.decode`."""
        return self.classifier(x)
