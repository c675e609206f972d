"""Position embeddings of another image size, or of another number of tokens before the patches."""

from __future__ import annotations

from math import isqrt

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor


def fitted_positions(value: Tensor, grid: tuple[int, int], num_prefix: int) -> Tensor:
    """Resamples positions of a file to a grid (bicubic).

    Files have a position for all of the tokens before the patches, for CLS alone (DINOv2 with
    registers), or for none (DeiT-III): adding nothing to a token is adding a zero.

    Args:
        value: `(1, P' + h'*w', C)`, of a square grid, P' one of 0, 1 and P.
        grid: `(h, w)`.
        num_prefix: P.

    Returns:
        `(1, P + h*w, C)`; unchanged where that is its shape.

    Raises:
        ValueError: its grid is not square, and nothing in a file says which one it is.
    """
    count = value.shape[1]
    if count == num_prefix + grid[0] * grid[1]:
        return value
    known = sorted({0, min(1, num_prefix), num_prefix})
    for prefix in known:
        patches = count - prefix
        if patches > 0 and isqrt(patches) ** 2 == patches:
            laid = resample_abs_pos_embed(value[:, prefix:], grid, num_prefix_tokens=0)
            nothing = value.new_zeros(1, num_prefix - prefix, value.shape[2])
            return torch.cat([value[:, :prefix], nothing, laid], 1)
    raise ValueError(
        f"its position embedding has {count} tokens, which is no square grid of patches after "
        f"{' or '.join(map(str, known))} other tokens: only square ones can be resized"
    )
