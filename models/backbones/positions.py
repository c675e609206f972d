"""Fits position embeddings of another image size, or another number of tokens before patches."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import Tensor, nn


def fitted_positions(value: Tensor, grid: tuple[int, int], num_prefix: int) -> Tensor:
    """Resamples positions of a file to a grid (bicubic).

    Files have positions for all tokens before the patches, for CLS alone (DINOv2 with registers),
    or for none of them (DeiT-III); a missing position becomes 0.

    Args:
        value: `(1, P' + h'*w', C)`, from a square grid; P' is 0, 1 or P.
        grid: `(h, w)`.
        num_prefix: P.

    Returns:
        `(1, P + h*w, C)`; unchanged if it has this shape already.

    Raises:
        ValueError: its grid is not square, so that its sides are not known.
    """
    count = value.shape[1]
    if count == num_prefix + grid[0] * grid[1]:
        return value
    known = sorted({0, min(1, num_prefix), num_prefix})
    for prefix in known:
        patches = count - prefix
        if _is_square(patches):
            laid = resample_abs_pos_embed(value[:, prefix:], grid, num_prefix_tokens=0)
            nothing = value.new_zeros(1, num_prefix - prefix, value.shape[2])
            return torch.cat([value[:, :prefix], nothing, laid], 1)
    raise ValueError(
        f"its position embedding has {count} tokens, which is no square grid of patches after "
        f"{' or '.join(map(str, known))} other tokens: only square ones can be resized"
    )


def cls_with_its_place(state: Mapping[str, Tensor], patches: int) -> dict[str, Tensor]:
    """Adds CLS's position to CLS, for a network that has positions only for patches.

    DINOv2's files with registers have a position of CLS, timm's networks with registers do not.

    Args:
        state: of a file.
        patches: number of patches in the network.

    Returns:
        CLS and the positions of the patches; empty if the file has no position of CLS.
    """
    token, places = state.get("cls_token"), state.get("pos_embed")
    if token is None or places is None or places.ndim != 3 or places.shape[2:] != token.shape[2:]:
        return {}
    left = places.shape[1] - 1
    if left != patches and not _is_square(left):
        return {}
    return {"cls_token": token + places[:, :1], "pos_embed": places[:, 1:]}


def fitted_biases(value: Tensor, attention: nn.Module) -> Tensor:
    """Resamples biases of relative positions to another window (bicubic).

    Args:
        value: `(positions, heads)` of a file; those of CLS, if any, come last.
        attention: timm's module that uses them.

    Returns:
        Biases of the module's shape; unchanged if the file's window is not square.
    """
    own: Any = attention.relative_position_bias_table
    window: Any = attention.window_size
    beside = len(own) - (2 * window[0] - 1) * (2 * window[1] - 1)
    if value.ndim != 2 or value.shape[1:] != own.shape[1:] or not _is_square(len(value) - beside):
        return value
    return resize_rel_pos_bias_table(value, window, tuple(own.shape))


def _is_square(patches: int) -> bool:
    return patches > 0 and isqrt(patches) ** 2 == patches
