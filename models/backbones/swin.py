"""Swin Transformers from timm (Liu et al. 2021, arXiv 2103.14030): a pyramid of maps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import resize_rel_pos_bias_table
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, window_partition
from torch import Tensor, nn

from models.attention import Attention, AttentionRequest
from models.backbones.base import AttentionBackbone, Features, StateDict, parse_layers
from models.precision import at_least_float32

_STAGES = 4


class Swin(AttentionBackbone):
    """timm's Swin without classifier; the four stages' outputs are the maps.

    The final norm belongs to the last stage: the other maps are the residual stream. There is no
    CLS token. Attention is given over the whole grid: 0 outside a token's window, and rows lack
    what falls on the padding of windows at the border.
    """

    net: Any  # SwinTransformer: its stages have no types
    num_prefix = 0
    pool = "mean"

    def __init__(self, net: Any, layers: str = "last") -> None:
        self.layers = parse_layers(layers, _STAGES)
        widths = [int(info["num_chs"]) for info in net.feature_info]
        strides = [int(info["reduction"]) for info in net.feature_info]
        super().__init__(
            widths[-1],
            tuple(widths[layer] for layer in self.layers),
            tuple(strides[layer] for layer in self.layers),
            strides[-1],
        )
        self.net = net
        self.attention_heads = tuple(
            block.attn.num_heads for stage in net.layers for block in stage.blocks
        )

    def forward(self, images: Tensor, attention: AttentionRequest | None = None) -> Features:
        """See `Backbone.forward`."""
        wanted = attention.resolve(self.depth) if attention else ()
        stages: dict[int, Tensor] = {}
        rows = []
        for position, (_, number, block, before, after) in enumerate(self._walk(images)):
            if attention and position in wanted:
                rows.append(_attention(position, block, before, attention))
            stages[number] = after
        stages[_STAGES - 1] = self.net.norm(stages[_STAGES - 1])
        maps = tuple(stages[layer].movedim(-1, 1) for layer in self.layers)
        return Features(
            pooled=stages[_STAGES - 1].mean((1, 2)),
            maps=maps,
            prefix=tuple(each.new_zeros(len(each), 0, each.shape[1]) for each in maps),
            strides=self.map_strides,
            attention=tuple(rows) if attention else None,
        )

    def layer_maps(self, images: Tensor) -> dict[str, Tensor]:
        """See `Backbone.layer_maps`."""
        return {name: after.movedim(-1, 1) for name, _, _, _, after in self._walk(images)}

    def _walk(
        self, images: Tensor
    ) -> Iterator[tuple[str, int, SwinTransformerBlock, Tensor, Tensor]]:
        # Every block with its name, its stage, its input and its output, (B, h, w, C) both.
        x = self.net.patch_embed(self.normalise(images))
        for number, stage in enumerate(self.net.layers):
            x = stage.downsample(x)
            for index, block in enumerate(stage.blocks):
                before, x = x, block(x)
                yield f"layers.{number}.blocks.{index}", number, block, before, x

    def stages(self) -> list[nn.Module]:
        """The four stages; the final norm belongs to the last one."""
        *stages, last = self.net.layers
        return [*stages, nn.ModuleList([last, self.net.norm])]

    def adapt(self, key: str, value: Tensor) -> Tensor:
        """Resamples relative positions of another window size (bicubic)."""
        own = self.net.state_dict()[key]
        if key.endswith("relative_position_bias_table") and value.shape[1:] == own.shape[1:]:
            block = self.net.get_submodule(key.removesuffix(".relative_position_bias_table"))
            window: Any = block.window_size
            return resize_rel_pos_bias_table(value, window, tuple(own.shape))
        return value


def _windows(block: SwinTransformerBlock, x: Tensor) -> Tensor:
    # As in the block: shift (B, h, w, C), pad, cut into windows. Returns (B * windows, area, C).
    if any(block.shift_size):
        x = torch.roll(x, (-block.shift_size[0], -block.shift_size[1]), (1, 2))
    return window_partition(_padded(block, x), block.window_size).flatten(1, 2)


@torch.no_grad()
def _token_ids(block: SwinTransformerBlock, grid: tuple[int, int], device: torch.device) -> Tensor:
    # (windows, area): which token lies where; the number of tokens stands for padding.
    count = grid[0] * grid[1]
    ids = torch.arange(1, count + 1, device=device).view(1, *grid, 1)
    found = _windows(block, ids)[..., 0]
    return torch.where(found > 0, found - 1, count)


def _attention(
    position: int, block: SwinTransformerBlock, before: Tensor, request: AttentionRequest
) -> Attention:
    if request.queries in ("cls", "factors"):
        raise ValueError(
            "A Swin has no CLS token and no global attention; ask for queries 'mean' or 'all'."
        )
    x = before[: request.num_images]
    batch, grid = len(x), (x.shape[1], x.shape[2])
    rows = _window_rows(block, block.norm1(x)).unflatten(0, (batch, -1)).movedim(2, 1)
    ids = _token_ids(block, grid, x.device)  # (windows, area)
    count = grid[0] * grid[1]
    heads = rows.shape[1]  # rows: (B, heads, windows, area, area)
    if request.queries == "mean":
        received = rows.new_zeros(batch, heads, count + 1)
        received[:, :, ids] = (rows * (ids < count)[..., None]).sum(3) / count
        return Attention(position, received[:, :, None, :count], grid, 0)
    whole = rows.new_zeros(batch, heads, count + 1, count + 1)
    whole[:, :, ids[:, :, None], ids[:, None]] = rows
    return Attention(position, whole[:, :, :count, :count], grid, 0)


def _window_rows(block: SwinTransformerBlock, x: Tensor) -> Tensor:
    """Returns softmax(q kᵀ scale + relative position bias + shift mask).

    Args:
        block: whose attention.
        x: its normalised input, `(B, h, w, C)`.

    Returns:
        `(B * windows, heads, area, area)` in float32 or better.
    """
    attn: Any = block.attn
    windows = _windows(block, x)
    qkv = attn.qkv(windows).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = qkv[0], qkv[1]  # (B * windows, heads, area, d)
    with torch.autocast(x.device.type, enabled=False):
        q, k = at_least_float32(q, k)
        logits = q @ k.transpose(-2, -1) * attn.scale + attn._get_rel_pos_bias()
        mask = block.get_attn_mask(_padded(block, x))
        if mask is not None:
            logits = logits.unflatten(0, (-1, len(mask))) + mask[None, :, None].to(logits.dtype)
            logits = logits.flatten(0, 1)
        return logits.softmax(-1)


def _padded(block: SwinTransformerBlock, x: Tensor) -> Tensor:
    # (B, h, w, C) to the size of whole windows.
    height, width = block.window_size
    return F.pad(x, (0, 0, 0, -x.shape[2] % width, 0, -x.shape[1] % height))


def build(
    name: str,
    embed_dim: int,
    depths: tuple[int, ...],
    num_heads: tuple[int, ...],
    *,
    image_size: int,
    drop_path: float = 0.0,
    layers: str = "last",
    window_size: int = 7,
) -> Swin:
    """Builds a Swin of any size; windows shrink to the grid where that is smaller."""
    # The grid that windows are made for; images of other sizes keep these windows.
    side = -(-image_size // 32) * 32
    net = SwinTransformer(
        img_size=side,
        embed_dim=embed_dim,
        depths=depths,
        num_heads=num_heads,
        window_size=window_size,
        drop_path_rate=drop_path,
        num_classes=0,
        strict_img_size=False,
    )
    backbone = Swin(net, layers)
    backbone.plain = (
        f'timm.create_model("{name}_patch4_window7_224", num_classes=0, img_size={side}, '
        f"embed_dim={embed_dim}, depths={depths}, num_heads={num_heads}, "
        f"window_size={window_size}, strict_img_size=False)"
    )

    def pretrained() -> StateDict:
        full = f"{name}_patch4_window7_224"
        return timm.create_model(full, pretrained=True, num_classes=0).state_dict()

    backbone.sources["pretrained"] = pretrained
    return backbone


def swin_tiny(**settings: Any) -> Swin:
    """Swin-T: width 96 to 768, 12 blocks, 27.5 M parameters."""
    return build("swin_tiny", 96, (2, 2, 6, 2), (3, 6, 12, 24), **settings)


def swin_small(**settings: Any) -> Swin:
    """Swin-S: width 96 to 768, 24 blocks, 48.8 M parameters."""
    return build("swin_small", 96, (2, 2, 18, 2), (3, 6, 12, 24), **settings)


def swin_base(**settings: Any) -> Swin:
    """Swin-B: width 128 to 1024, 24 blocks, 86.7 M parameters."""
    return build("swin_base", 128, (2, 2, 18, 2), (4, 8, 16, 32), **settings)
