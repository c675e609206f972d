"""BoTNet-50 (Srinivas et al. 2021, arXiv 2101.11605): ResNet-50, its last stage with attention."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import ResNet as Net

from models.attention import (
    Attention,
    AttentionFactors,
    AttentionRequest,
    pass_with_attention,
)
from models.backbones.base import Features, GlobalAttentionBackbone
from models.backbones.resnet import ResNet, make_net, resnet50_sources
from models.precision import at_least_float32

HEADS = 4
Grid = tuple[int, int]


class RelativeAttention2d(nn.Module):
    """All-to-all attention on a map, with relative positions (section 3 and figure 4).

    Logits of query (i, j) and key (k, l): q · (key + r_h[k - i] + r_w[l - j]) / √d, with r_h and
    r_w learnt and shared by the heads. They are interpolated to any other grid than the native one.

    Args:
        channels: width C.
        grid: native height and width.
        heads: number of heads.
    """

    def __init__(self, channels: int, grid: Grid, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        width = channels // heads
        self.rel_height = nn.Parameter(torch.randn(2 * grid[0] - 1, width) * width**-0.5)
        self.rel_width = nn.Parameter(torch.randn(2 * grid[1] - 1, width) * width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `(B, C, h, w)` for `(B, C, h, w)`."""
        q, k, v = self._qkv(x)
        mixed = self._logits(q, k, (x.shape[2], x.shape[3])).softmax(-1) @ v  # (B, heads, N, d)
        return mixed.transpose(2, 3).reshape(x.shape)

    def rows(self, x: Tensor) -> Tensor:
        """Returns the attention `(B, heads, N, N)`, in float32 or better."""
        q, k, _ = self._qkv(x)
        with torch.autocast(x.device.type, enabled=False):
            q, k = at_least_float32(q, k)
            return self._logits(q, k, (x.shape[2], x.shape[3])).softmax(-1)

    def factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns queries and keys `(B, heads, N, d + h + w)` whose products are the logits.

        The last entries of a query are its position logits for every row and column of the grid;
        those of a key encode its row and column (one-hot).
        """
        grid = (x.shape[2], x.shape[3])
        q, k, _ = self._qkv(x)
        by_row, by_column = self._position(q, grid)
        places = torch.cartesian_prod(*(torch.arange(side, device=x.device) for side in grid))
        marks = [F.one_hot(places[:, axis], side) for axis, side in enumerate(grid)]
        at = torch.cat(marks, 1).to(k.dtype).expand(*k.shape[:2], -1, -1)
        return torch.cat([q, by_row, by_column], -1), torch.cat([k, at], -1)

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # (B, heads, N, d) each
        parts = self.to_qkv(x).flatten(2).unflatten(1, (3, self.heads, -1)).movedim(-1, -2)
        return parts[:, 0] * parts.shape[-1] ** -0.5, parts[:, 1], parts[:, 2]

    def _logits(self, q: Tensor, k: Tensor, grid: Grid) -> Tensor:
        by_row, by_column = self._position(q, grid)
        by_row, by_column = by_row.unflatten(2, grid), by_column.unflatten(2, grid)
        position = by_row[..., :, None] + by_column[..., None, :]  # (B, heads, h, w, h, w)
        return q @ k.transpose(-2, -1) + position.flatten(4).flatten(2, 3)

    def _position(self, q: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        # Logits of every query for every row and every column, (B, heads, N, h) and (…, w).
        rows, columns = (
            _relative(table.to(q.dtype), side)
            for table, side in zip((self.rel_height, self.rel_width), grid, strict=True)
        )
        at = q.unflatten(2, grid)  # (B, heads, h, w, d)
        by_row = torch.einsum("bnijd,ikd->bnijk", at, rows)
        by_column = torch.einsum("bnijd,jld->bnijl", at, columns)
        return by_row.flatten(2, 3), by_column.flatten(2, 3)


def _relative(table: Tensor, side: int) -> Tensor:
    """Returns the embeddings of all pairs of `side` positions, `(side, side, d)`."""
    # Without a test for the native grid, where this changes nothing: torch.export cannot branch.
    if torch.compiler.is_exporting() or len(table) != 2 * side - 1:
        table = F.interpolate(table.T[None], size=2 * side - 1, mode="linear", align_corners=True)[
            0
        ].T
    places = torch.arange(side, device=table.device)
    return table[places[None] - places[:, None] + side - 1]


class BoTNet(ResNet, GlobalAttentionBackbone):
    """A ResNet whose last stage has all-to-all attention instead of 3 x 3 convolutions.

    If that stage halves the resolution, its first block attends first and then averages 2 x 2.
    There is no CLS token. Weights of a ResNet fit, except for the replaced convolutions.
    """

    num_prefix = 0
    pool = "mean"

    def __init__(self, net: Net, strides: tuple[int, ...], layers: str, image_size: int) -> None:
        super().__init__(net, strides, layers)
        blocks = self._attending()
        self.attention_heads = (HEADS,) * len(blocks)
        self.replaced = tuple(f"layer4.{index}.conv2" for index in range(len(blocks)))
        side = -(-image_size // strides[2])
        for block in blocks:
            channels, stride = block.conv2.in_channels, block.conv2.stride[0]
            pool = [nn.AvgPool2d(2, ceil_mode=True)] if stride == 2 else []
            block.conv2 = nn.Sequential(RelativeAttention2d(channels, (side, side)), *pool)
            side = -(-side // stride)

    def _attending(self) -> list[Any]:
        return list(self.net.layer4.children())

    def forward(self, images: Tensor, attention: AttentionRequest | None = None) -> Features:
        """See `Backbone.forward`."""
        if attention is None:
            return super().forward(images)
        if attention.queries == "cls":
            raise ValueError("A BoTNet has no CLS token; ask for queries 'mean' or 'all'.")
        features, answers = pass_with_attention(
            partial(super().forward, images),
            [block.conv2[0] for block in self._attending()],
            attention,
            partial(_answer, attention),
        )
        return features.with_answers(answers)


def _answer(
    request: AttentionRequest, block: int, module: RelativeAttention2d, x: Tensor
) -> Attention | AttentionFactors:
    x = x[: request.num_images]
    grid = (x.shape[2], x.shape[3])
    if request.queries == "factors":
        return AttentionFactors(block, *module.factors(x), grid, 0, sum(grid))
    rows = module.rows(x)
    if request.queries == "mean":
        rows = rows.mean(2, keepdim=True)
    return Attention(block, rows, grid, 0)


def botnet50(
    *, image_size: int, stem: str = "imagenet", output_stride: int = 32, layers: str = "last"
) -> BoTNet:
    """BoTNet-50: 2048 features, 18.8 M parameters at 224 px; `output_stride 16` is BoTNet-S1.

    Raises:
        ValueError: the stride is not 16 or 32.
    """
    if output_stride == 8:
        raise ValueError("--backbone.output_stride 8: botnet50 attends at 16 or 32.")
    net, strides = make_net(torchvision.models.resnet50, True, stem, output_stride)
    backbone = BoTNet(net, strides, layers, image_size)
    backbone.sources.update(resnet50_sources(output_stride))
    return backbone
