"""Fusion 1: attention maps as additional channels of the features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones.base import Features
from models.fusions.base import Fusion, attention_maps, log_maps
from models.heads.base import resize, size_of

WIDTH = 32


class MapsAsChannels(Fusion):
    """E = GELU(W BN(log N a)), 32 channels beside those of the deepest map."""

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        heads: Sequence[int],
    ) -> None:
        super().__init__()
        self.channels = (*channels[:-1], channels[-1] + WIDTH)
        self.norm = nn.BatchNorm2d(sum(heads))
        self.embed = nn.Conv2d(sum(heads), WIDTH, 1)

    def enrich(self, features: Features, edges: Tensor | None) -> Features:
        """See `Fusion.enrich`."""
        *others, deepest = features.maps
        return replace(features, maps=(*others, torch.cat([deepest, self.embedded(features)], 1)))

    def embedded(self, features: Features) -> Tensor:
        """Returns E on the grid of the deepest map, `(B, 32, h, w)`."""
        deepest = features.maps[-1]
        maps = [resize(log_maps(each), size_of(deepest)) for each in attention_maps(features)]
        return F.gelu(self.embed(self.norm(torch.cat(maps, 1).to(deepest.dtype))))

    def learnt(self) -> dict[str, float]:
        """map_weight: norm of the weights of an attention map, mean over maps."""
        return {"map_weight": float(self.embed.weight.detach().norm(dim=0).mean())}
