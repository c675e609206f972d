"""Segmenter's mask transformer (Strudel et al. 2021, arXiv 2105.05633, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from models.heads.base import SingleMapHead

LAYERS = 2
HEAD_WIDTH = 64


class SegmenterMask(SingleMapHead):
    """One learnt token per class joins the patches in two transformer blocks.

    The logit is the cosine of patch and class token, normalised over the classes by a LayerNorm.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__(channels, strides, num_classes)
        width = self.in_channels
        most = max(1, width // HEAD_WIDTH)
        heads = next(count for count in range(most, 0, -1) if width % count == 0)
        self.project = nn.Linear(width, width)
        self.classes = nn.Parameter(torch.empty(1, num_classes, width))
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(width)
        self.patch_projection = nn.Linear(width, width, bias=False)
        self.class_projection = nn.Linear(width, width, bias=False)
        self.mask_norm = nn.LayerNorm(num_classes)
        nn.init.trunc_normal_(self.classes, std=0.02)
        for projection in (self.patch_projection, self.class_projection):
            nn.init.normal_(projection.weight, std=width**-0.5)

    def decode(self, x: Tensor) -> Tensor:
        """See `SingleMapHead.decode`."""
        batch, _, height, width = x.shape
        tokens = self.project(x.flatten(2).transpose(1, 2))  # (B, h*w, D)
        tokens = torch.cat([tokens, self.classes.expand(batch, -1, -1)], 1)
        tokens = self.norm(self.blocks(tokens))
        patches = F.normalize(self.patch_projection(tokens[:, : height * width]), dim=-1)
        classes = F.normalize(self.class_projection(tokens[:, height * width :]), dim=-1)
        masks = self.mask_norm(patches @ classes.transpose(1, 2))  # (B, h*w, classes)
        return masks.transpose(1, 2).unflatten(-1, (height, width))
