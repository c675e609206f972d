"""Vision Transformers from timm (Dosovitskiy et al. 2021; sizes of DeiT, Touvron et al. 2021)."""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.attention import Attention, AttentionFactors, AttentionRequest
from models.backbones.base import Features, GlobalAttentionBackbone, StateDict, parse_layers
from utils.checkpoints import download

_DINO = "https://dl.fbaipublicfiles.com/dino/"
_DINO_FILES = {
    ("vit_small", 16): "dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
    ("vit_small", 8): "dino_deitsmall8_pretrain/dino_deitsmall8_pretrain.pth",
    ("vit_base", 16): "dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
    ("vit_base", 8): "dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth",
}


class ViT(GlobalAttentionBackbone):
    """timm's ViT with its tokens as maps, fused attention in training, rows on request."""

    net: VisionTransformer

    def __init__(self, net: VisionTransformer, pool: str = "cls", layers: str = "last") -> None:
        self.patch_size = int(net.patch_embed.patch_size[0])
        self.layers = parse_layers(layers, len(net.blocks))
        count = len(self.layers)
        super().__init__(
            net.embed_dim, (net.embed_dim,) * count, (self.patch_size,) * count, self.patch_size
        )
        self.net = net
        blocks: Any = net.blocks
        self.attention_heads = tuple(block.attn.num_heads for block in blocks)
        self.num_prefix = net.num_prefix_tokens
        self.pool = pool

    def forward(self, images: Tensor, attention: AttentionRequest | None = None) -> Features:
        """See `Backbone.forward`."""
        tokens, grid = self._embed(images)
        wanted = attention.resolve(self.depth) if attention else ()
        answers, kept = [], []
        for index, block in enumerate(self.net.blocks):
            if attention and index in wanted:
                answers.append(self._attention(index, block, tokens, grid, attention))
            tokens = block(tokens)
            if index in self.layers:
                kept.append(tokens)
        last = self.net.norm(tokens)
        # The final norm is not run twice when the last block is among the layers.
        kept = [last if layer is tokens else self.net.norm(layer) for layer in kept]
        return self.token_features(last, kept, grid, answers)

    def layer_maps(self, images: Tensor) -> dict[str, Tensor]:
        """See `Backbone.layer_maps`."""
        tokens, grid = self._embed(images)
        maps = {}
        for index, block in enumerate(self.net.blocks):
            tokens = block(tokens)
            maps[f"blocks.{index}"] = self.as_map(tokens, grid)
        return maps

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        tokens = self.net.patch_embed(self.normalise(images))  # (B, h, w, C)
        return self.net.norm_pre(self.net._pos_embed(tokens)), grid  # (B, P + h*w, C)

    def _attention(
        self,
        index: int,
        block: Any,
        tokens: Tensor,
        grid: tuple[int, int],
        request: AttentionRequest,
    ) -> Attention | AttentionFactors:
        attn = block.attn
        tokens = block.norm1(tokens[: request.num_images])
        batch, length, _ = tokens.shape
        qkv = attn.qkv(tokens).reshape(batch, length, 3, attn.num_heads, attn.head_dim)
        q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, d) each
        return self.answer(index, attn.q_norm(q), attn.k_norm(k), attn.scale, grid, request)

    def stages(self) -> list[nn.Module]:
        """The blocks; the final norm belongs to the last one."""
        *blocks, last = self.net.blocks
        return [*blocks, nn.ModuleList([last, self.net.norm])]

    def adapt(self, key: str, value: Tensor) -> Tensor:
        """Resamples position and patch embeddings of another image or patch size (bicubic)."""
        if key == "pos_embed" and value.shape[-1] == self.embed_dim:
            grid = self.net.patch_embed.grid_size
            return resample_abs_pos_embed(value, grid, num_prefix_tokens=self.num_prefix)
        if key == "patch_embed.proj.weight" and value.shape[0] == self.embed_dim:
            return resample_patch_embed(value, [self.patch_size, self.patch_size])
        return value


def _build(
    name: str,
    embed_dim: int,
    num_heads: int,
    *,
    image_size: int,
    patch_size: int = 16,
    depth: int = 12,
    mlp_ratio: float = 4.0,
    drop_path: float = 0.0,
    pool: str = "cls",
    layers: str = "last",
) -> ViT:
    if embed_dim % num_heads:
        raise ValueError(
            f"backbone.embed_dim {embed_dim} is not a multiple of num_heads {num_heads}: set "
            "--backbone.num_heads to a divisor."
        )
    # The grid that position embeddings are made for; images of other sizes interpolate them.
    side = -(-image_size // patch_size) * patch_size
    net = VisionTransformer(
        img_size=side,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        drop_path_rate=drop_path,
        num_classes=0,
        global_pool="token",
        dynamic_img_size=True,
    )
    backbone = ViT(net, pool, layers)
    backbone.plain = (
        f'timm.create_model("{name}_patch16_224", num_classes=0, img_size={side}, '
        f"patch_size={patch_size}, embed_dim={embed_dim}, depth={depth}, num_heads={num_heads}, "
        f"mlp_ratio={mlp_ratio}, dynamic_img_size=True)"
    )

    def pretrained() -> StateDict:
        return timm.create_model(f"{name}_patch16_224", pretrained=True, num_classes=0).state_dict()

    backbone.sources["pretrained"] = pretrained
    if (name, patch_size) in _DINO_FILES:
        backbone.sources["dino"] = partial(download, _DINO + _DINO_FILES[name, patch_size])
    return backbone


def vit_demo(
    *,
    patch_size: int = 8,
    depth: int = 6,
    embed_dim: int = 96,
    num_heads: int = 3,
    **settings: object,
) -> ViT:
    """The demonstration's toy: patch 8, depth 6, width 96, 3 heads; 0.7 M parameters."""
    sizes = {"patch_size": patch_size, "depth": depth}
    return _build("vit_tiny", embed_dim, num_heads, **sizes, **settings)  # type: ignore[arg-type]


def vit_tiny(*, embed_dim: int = 192, num_heads: int = 3, **settings: object) -> ViT:
    """ViT-Tiny: width 192, 3 heads; 5.5 M parameters at depth 12."""
    return _build("vit_tiny", embed_dim, num_heads, **settings)  # type: ignore[arg-type]


def vit_small(*, embed_dim: int = 384, num_heads: int = 6, **settings: object) -> ViT:
    """ViT-Small: width 384, 6 heads; 21.7 M parameters at depth 12."""
    return _build("vit_small", embed_dim, num_heads, **settings)  # type: ignore[arg-type]


def vit_base(*, embed_dim: int = 768, num_heads: int = 12, **settings: object) -> ViT:
    """ViT-Base: width 768, 12 heads; 85.8 M parameters at depth 12."""
    return _build("vit_base", embed_dim, num_heads, **settings)  # type: ignore[arg-type]
