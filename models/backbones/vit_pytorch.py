"""The ViT of the vit-pytorch package, which the study trained from scratch."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from vit_pytorch import ViT as Net

from models.attention import Attention, AttentionFactors, AttentionRequest
from models.backbones.base import Features, GlobalAttentionBackbone, Pool, Tokens, as_map
from models.backbones.positions import fitted_positions
from models.layer_numbers import parse_layers
from utils.text import as_arguments


class ViTPyTorch(GlobalAttentionBackbone):
    """vit-pytorch's ViT with one CLS token, its tokens as maps and positions for any image size."""

    net: Net
    num_prefix = 1
    has_cls = True

    def __init__(self, net: Net, grid: int, pool: Pool = "cls", layers: str = "last") -> None:
        self.patch_size = int(net.patch_size[0])
        width, blocks = net.pos_embedding.shape[-1], net.transformer.layers
        self.layers = parse_layers(layers, len(blocks))
        count = len(self.layers)
        super().__init__(width, (width,) * count, (self.patch_size,) * count, self.patch_size)
        self.net = net
        self.attention_heads = tuple(attend.heads for attend, _ in blocks)
        self.native_grid = (grid, grid)
        self.pool = pool

    def forward(self, images: Tensor, attention: AttentionRequest | None = None) -> Features:
        """See `Backbone.forward`."""
        tokens, grid = self._embed(images)
        wanted = attention.resolve(self.depth) if attention else ()
        answers, kept = [], []
        for index, (attend, mlp) in enumerate(self.net.transformer.layers):
            if attention and index in wanted:
                answers.append(self._attention(index, attend, tokens, grid, attention))
            tokens = attend(tokens) + tokens
            tokens = mlp(tokens) + tokens
            if index in self.layers:
                kept.append(tokens)
        last = self.net.transformer.norm(tokens)
        kept = [last if layer is tokens else self.net.transformer.norm(layer) for layer in kept]
        layers = [self._split(layer) for layer in kept]
        return self.token_features(self._split(last), layers, grid, answers)

    def layer_maps(self, images: Tensor) -> dict[str, Tensor]:
        """See `Backbone.layer_maps`."""
        tokens, grid = self._embed(images)
        maps = {}
        for index, (attend, mlp) in enumerate(self.net.transformer.layers):
            tokens = attend(tokens) + tokens
            tokens = mlp(tokens) + tokens
            maps[f"transformer.layers.{index}"] = as_map(self._split(tokens)[0], grid)
        return maps

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        net = self.net
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        patches = net.to_patch_embedding(self.normalise(images))  # (B, h*w, C)
        cls = net.cls_token.expand(patches.shape[0], 1, -1)
        positions = resample_abs_pos_embed(
            net.pos_embedding[None], grid, self.native_grid, self.num_prefix
        )
        return net.dropout(torch.cat([cls, patches], 1) + positions), grid

    def _split(self, tokens: Tensor) -> Tokens:
        return tokens[:, self.num_prefix :], tokens[:, : self.num_prefix]

    def _attention(
        self,
        index: int,
        attend: Any,
        tokens: Tensor,
        grid: tuple[int, int],
        request: AttentionRequest,
    ) -> Attention | AttentionFactors:
        q, k, _ = attend.to_qkv(attend.norm(tokens[: request.num_images])).chunk(3, -1)
        q, k = (part.unflatten(-1, (attend.heads, -1)).transpose(1, 2) for part in (q, k))
        return self.answer(index, q * attend.scale, k, grid, request)

    def stages(self) -> list[nn.Module]:
        """The blocks; the final norm belongs to the last one."""
        *blocks, last = self.net.transformer.layers
        return [*blocks, nn.ModuleList([last, self.net.transformer.norm])]

    def adapt(self, key: str, value: Tensor) -> Tensor:
        """Resamples the position embedding from another image size (bicubic)."""
        if key == "pos_embedding" and value.shape[-1] == self.embed_dim:
            tokens = value.reshape(1, -1, self.embed_dim)
            return fitted_positions(tokens, self.native_grid, self.num_prefix)[0]
        return value


def vit_pytorch(
    *,
    image_size: int,
    patch_size: int = 16,
    depth: int = 12,
    embed_dim: int = 384,
    num_heads: int = 6,
    mlp_ratio: float = 4.0,
    dropout: float = 0.0,
    pool: Pool = "cls",
    layers: str = "last",
) -> ViTPyTorch:
    """A ViT-Small by default; `mlp_ratio 2.667 dropout 0.1` is the study's.

    Raises:
        ValueError: the width is not a multiple of the heads.
    """
    if embed_dim % num_heads:
        raise ValueError(f"embed_dim {embed_dim} must be a multiple of num_heads {num_heads}.")
    grid = -(-image_size // patch_size)
    options = {
        "image_size": grid * patch_size,
        "patch_size": patch_size,
        "num_classes": 0,
        "dim": embed_dim,
        "depth": depth,
        "heads": num_heads,
        "dim_head": embed_dim // num_heads,
        "mlp_dim": round(embed_dim * mlp_ratio),
    }
    net = Net(**options, dropout=dropout, emb_dropout=dropout)
    backbone = ViTPyTorch(net, grid, pool, layers)
    backbone.plain = f"vit_pytorch.ViT({as_arguments(options)})"
    return backbone
