"""Swin Transformers from timm (Liu et al. 2021, arXiv 2103.14030): a pyramid of maps."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, window_partition
from torch import Tensor, nn

from models.attention import Attention, AttentionRequest
from models.backbones.base import Features, StateDict, no_prefix
from models.backbones.positions import fitted_biases
from models.backbones.timm_base import TimmBackbone, pretrained
from models.scores import scores_of
from utils.text import as_arguments

_STAGES = 4


class Swin(TimmBackbone):
    """timm's Swin without classifier; the four stages' outputs are the maps.

    The final norm belongs to the last stage: the other maps are the residual stream. There is no
    CLS token. Attention covers the whole grid, with 0 outside a token's window; at the border, rows
    sum to less than 1 because some attention goes to padding.
    """

    num_prefix = 0
    pool = "mean"

    # torch.export does not finish with windows that are padded, shifted and cut.
    traces_any_size = False

    def __init__(self, net: Any, layers: str = "last") -> None:
        super().__init__(net, layers, patch_multiple=int(net.feature_info[-1]["reduction"]))

    def attention_modules(self) -> list[Any]:
        """See `TimmBackbone.attention_modules`."""
        return [block.attn for _, block in self._blocks()]

    def _blocks(self) -> list[tuple[int, Any]]:
        # Every block with the number of its stage, shallow to deep.
        stages = enumerate(self.net.layers)
        return [(number, block) for number, stage in stages for block in stage.blocks]

    def forward(self, images: Tensor, attention: AttentionRequest | None = None) -> Features:
        """See `Backbone.forward`."""
        if attention and attention.queries in ("cls", "factors"):
            raise ValueError(
                "A Swin has no CLS token and no global attention; ask for queries 'mean' or 'all'."
            )
        (last, stages), answers = self.intermediates(images, attention, indices=list(self.layers))
        # timm returns the normalised last stage, (B, h, w, C), beside the requested stages.
        maps = [*stages[:-1], last.movedim(-1, 1)] if self.layers[-1] == _STAGES - 1 else stages
        return Features(
            pooled=last.mean((1, 2)),
            maps=tuple(maps),
            prefix=no_prefix(maps),
            strides=self.map_strides,
        ).with_answers(answers)

    def layer_maps(self, images: Tensor) -> dict[str, Tensor]:
        """See `Backbone.layer_maps`; timm returns only stages, so hooks collect the blocks."""
        maps: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
            return lambda _, __, output: maps.update({name: output.movedim(-1, 1)})

        with ExitStack() as hooks:
            for number, stage in enumerate(self.net.layers):
                for index, block in enumerate(stage.blocks):
                    hook = block.register_forward_hook(keep(f"layers.{number}.blocks.{index}"))
                    hooks.enter_context(hook)
            self.intermediates(images, indices=[_STAGES - 1], intermediates_only=True)
        return maps

    def block_attention(
        self,
        size: tuple[int, int],
        request: AttentionRequest,
        block: int,
        attn: Any,
        tokens: Tensor,
        mask: Tensor | None = None,
        **inputs: Any,
    ) -> Attention:
        """See `TimmBackbone.block_attention`.

        Args:
            size: height and width of the images in pixels.
            request: for queries `mean` or `all`.
            block: index from the front.
            attn: the block's attention module.
            tokens: normalised, shifted, padded and cut into windows, `(B * windows, area, C)`.
            mask: of a shifted block, `(windows, area, area)`.
            inputs: unused.
        """
        number, layout = self._blocks()[block]
        stride = int(self.net.feature_info[number]["reduction"])
        grid = (size[0] // stride, size[1] // stride)
        ids = _token_ids(layout, grid, tokens.device)  # (windows, area)
        if request.num_images is not None:
            tokens = tokens[: request.num_images * len(ids)]
        rows = scores_of(attn, tokens, mask).rows()  # (B * windows, heads, area, area)
        rows = rows.unflatten(0, (-1, len(ids))).movedim(2, 1)
        return Attention(block, _on_grid(rows, ids, grid, request.queries), grid, 0)

    def stages(self) -> list[nn.Module]:
        """The four stages; the final norm belongs to the last one."""
        *stages, last = self.net.layers
        return [*stages, nn.ModuleList([last, self.net.norm])]

    def fold(self, state: StateDict) -> tuple[StateDict, tuple[str, ...]]:
        """See `Backbone.fold`: renames weights of Swin's official code."""
        return merged_where_a_stage_begins(state), ()

    def adapt(self, key: str, value: Tensor) -> Tensor:
        """Resamples relative positions from another window size (bicubic)."""
        if not key.endswith("bias_table"):
            return value
        return fitted_biases(value, self.net.get_submodule(key.rpartition(".")[0]))


def merged_where_a_stage_begins(state: StateDict) -> StateDict:
    """Renames the patch-merging layers of a Swin as in timm, where they begin a stage.

    In Swin's official code, and in timm before 0.9, they end a stage: the first stage has one, and
    the last one does not.
    """
    if not any(key.startswith("layers.0.downsample.") for key in state):
        return state

    def behind(stage: re.Match[str]) -> str:
        return f"layers.{int(stage[1]) + 1}.downsample."

    merging = r"^layers\.(\d+)\.downsample\."
    return {re.sub(merging, behind, key): value for key, value in state.items()}


def _windows(block: SwinTransformerBlock, x: Tensor) -> Tensor:
    # Shifts (B, h, w, C), pads and cuts into windows (B * windows, area, C), as the block does.
    if any(block.shift_size):
        x = torch.roll(x, (-block.shift_size[0], -block.shift_size[1]), (1, 2))
    return window_partition(_padded(block, x), block.window_size).flatten(1, 2)


@torch.no_grad()
def _token_ids(block: SwinTransformerBlock, grid: tuple[int, int], device: torch.device) -> Tensor:
    # (windows, area): the index of the token at each place; the number of tokens means padding.
    count = grid[0] * grid[1]
    ids = torch.arange(1, count + 1, device=device).view(1, *grid, 1)
    found = _windows(block, ids)[..., 0]
    return torch.where(found > 0, found - 1, count)


def _on_grid(rows: Tensor, ids: Tensor, grid: tuple[int, int], queries: str) -> Tensor:
    """Puts attention in windows back to the places of its tokens; 0 outside a token's window.

    Args:
        rows: `(B, heads, windows, area, area)`.
        ids: see `_token_ids`.
        grid: `(h, w)`.
        queries: `mean` or `all`.

    Returns:
        `(B, heads, 1 or h*w, h*w)`.
    """
    batch, heads = rows.shape[:2]
    count = grid[0] * grid[1]
    if queries == "mean":
        received = rows.new_zeros(batch, heads, count + 1)
        received[:, :, ids] = (rows * (ids < count)[..., None]).sum(3) / count
        return received[:, :, None, :count]
    whole = rows.new_zeros(batch, heads, count + 1, count + 1)
    whole[:, :, ids[:, :, None], ids[:, None]] = rows
    return whole[:, :, :count, :count]


def _padded(block: SwinTransformerBlock, x: Tensor) -> Tensor:
    # Pads (B, h, w, C) to whole windows.
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
    """Builds a Swin of any size; windows shrink to the grid if that is smaller."""
    # The windows fit this grid; images of other sizes keep these windows.
    side = -(-image_size // 32) * 32
    options: dict[str, Any] = {
        "num_classes": 0,
        "img_size": side,
        "embed_dim": embed_dim,
        "depths": depths,
        "num_heads": num_heads,
        "window_size": window_size,
        "strict_img_size": False,
    }
    backbone = Swin(SwinTransformer(**options, drop_path_rate=drop_path), layers)
    model = f"{name}_patch4_window7_224"
    backbone.plain = f'timm.create_model("{model}", {as_arguments(options)})'
    backbone.sources["pretrained"] = partial(pretrained, model)
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
