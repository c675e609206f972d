"""A network of timm of which only the intermediate features are used."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from models.attention import AttentionRequest
from models.backbones.base import Backbone, Features, no_prefix
from models.backbones.timm_base import layer_names, stages_of
from models.backbones.timm_outline import Outline
from models.layer_numbers import parse_layers


class TimmMaps(Backbone):
    """A network of timm whose layers give maps; its attention, if any, is not available.

    Args:
        net: without classifier.
        outline: of the network.
        layers: which of its layers become maps, see `parse_layers`.
    """

    net: Any

    def __init__(self, net: Any, outline: Outline, layers: str = "last") -> None:
        self.layers = parse_layers(layers, len(outline.channels))
        super().__init__(
            outline.width,
            tuple(outline.channels[layer] for layer in self.layers),
            tuple(outline.strides[layer] for layer in self.layers),
        )
        self.net = net
        self.normed = outline.normed

    def forward(self, images: Tensor, attention: AttentionRequest | None = None) -> Features:
        """See `Backbone.forward`."""
        if attention is not None:
            raise ValueError(
                f"The attention of timm's {type(self.net).__name__} is not shown: it is not one "
                "between all patches, or there is none. Use a ViT or a Swin."
            )
        last, maps = self.net.forward_intermediates(
            self.normalise(images), indices=list(self.layers), norm=self.normed
        )
        return Features(
            pooled=self.net.forward_head(last, pre_logits=True),
            maps=tuple(maps),
            prefix=no_prefix(maps),
            strides=self.map_strides,
        )

    def layer_maps(self, images: Tensor) -> dict[str, Tensor]:
        """See `Backbone.layer_maps`; the layers are those of timm's `feature_info`."""
        maps = self.net.forward_intermediates(self.normalise(images), intermediates_only=True)
        names = layer_names(self.net)
        if len(set(names)) < len(names):
            names = [str(index) for index in range(len(names))]
        return dict(zip(names, maps, strict=True))

    def stages(self) -> list[nn.Module]:
        """The modules from one layer of `feature_info` to the next; none if timm names none."""
        return stages_of(self.net, layer_names(self.net))
