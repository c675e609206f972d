"""Networks to export to other programs: uint8 images in, named tensors out, no settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.backbones.base import Backbone
from models.segmenter import Segmenter


class Exported(nn.Module, ABC):
    """Maps images `(B, 3, H, W)` uint8 of any size to tensors; normalises them itself.

    It is frozen and in eval mode.

    Attributes:
        name: of the exported part.
        multiple: image sides must be multiples of this many pixels.
        fixed_side: side of the square images that it takes, in pixels; None: any size.
        traces_any_size: see `Backbone`.
        outputs: name and shape of each tensor.
        classes: names by label, if it returns labels.
    """

    name: str
    classes: tuple[str, ...] = ()

    def __init__(self, backbone: Backbone, multiple: int, outputs: dict[str, str]) -> None:
        super().__init__()
        self.multiple = multiple
        self.fixed_side = backbone.fixed_side
        self.traces_any_size = backbone.traces_any_size and backbone.fixed_side is None
        self.outputs = outputs

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Returns one tensor for each of `outputs`."""


class ExportedBackbone(Exported):
    """The features of a backbone: one vector per image, and maps from shallow to deep."""

    name = "backbone"

    def __init__(self, backbone: Backbone) -> None:
        several = len(backbone.map_channels) > 1
        maps = {
            f"map_{number}" if several else "map": f"(B, {channels}, H / {stride}, W / {stride})"
            for number, (channels, stride) in enumerate(
                zip(backbone.map_channels, backbone.map_strides, strict=True), start=1
            )
        }
        pooled = {"pooled": f"(B, {backbone.embed_dim})"}
        super().__init__(backbone, backbone.patch_multiple, pooled | maps)
        self.backbone = backbone
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See `Exported.forward`."""
        features = self.backbone(images)
        return features.pooled, *features.maps


class ExportedSegmenter(Exported):
    """The logits of a segmenter for every pixel; an image is seen whole and once.

    Raises:
        ValueError: its fusion reads the attention of another image, which may not exist.
    """

    name = "segmenter"

    def __init__(self, network: Segmenter, classes: Sequence[str]) -> None:
        if network.fusion.control == "shuffled":
            raise ValueError(
                "--segmentation.fusion_control shuffled reads the attention of another image, "
                "but an exported network may see only one image. It cannot be exported."
            )
        super().__init__(network.backbone, 1, {"logits": f"(B, {len(classes)}, H, W)"})
        self.network = network
        self.classes = tuple(classes)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See `Exported.forward`."""
        network, (height, width) = self.network, images.shape[-2:]
        features = network.fusion.controlled_batch(network.encode(images))
        logits = network.padded_logits(features, (height, width))
        # Not a slice: whether it is contiguous depends on the size, but torch.export assumes what
        # it saw when tracing.
        for dimension, side in ((-2, height), (-1, width)):
            logits = logits.index_select(dimension, torch.arange(side, device=logits.device))
        return (logits,)
