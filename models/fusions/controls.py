"""Controls of an attention fusion: the same parameters, without what is in the true attention.

A gain over the plain head shows that the fusion helps, one over its controls that attention does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import Attention, AttentionFactors, attention_rows
from models.backbones.base import Features

# Images of one size, by their positions in the batch.
Group = tuple[list[int], Features]


def uniform(features: Features) -> Features:
    """Returns features whose attention is the same everywhere."""
    return replace(
        features,
        attention=_each(features.attention, _uniform_rows),
        factors=_each(features.factors, _uniform_factors),
    )


def local(features: Features) -> Features:
    """Returns features whose patches attend to their neighbourhood, whatever is in the image.

    What NACLIP (Hajimiri et al. 2024) adds to attention, alone: a Gaussian of the distance, of one
    patch in the first head and a quarter of the grid's longer side in the last, so that a mix of
    heads finds the best width. CLS looks around the middle.
    """
    return replace(
        features,
        attention=_each(features.attention, _local_rows),
        factors=_each(features.factors, _local_factors),
    )


def shuffled(groups: Sequence[Group]) -> list[Group]:
    """Gives every image the attention of the next one of the batch, resized to its grid.

    Raises:
        ValueError: a batch of one image, which has no other.
    """
    where = {
        position: (features, row)
        for positions, features in groups
        for row, position in enumerate(positions)
    }
    if len(where) < 2:
        raise ValueError(
            "--segmentation.fusion_control shuffled takes the attention of another image of the "
            "batch: --data.batch_size must be at least 2."
        )
    order = sorted(where)
    following = dict(zip(order, order[1:] + order[:1], strict=True))
    moved = []
    for positions, features in groups:
        others = [where[following[position]] for position in positions]
        moved.append((positions, _with_attention_of(features, others)))
    return moved


def _with_attention_of(features: Features, others: Sequence[tuple[Features, int]]) -> Features:
    rows = _each(
        features.attention,
        lambda own, index: replace(
            own,
            weights=torch.cat(
                [_resized_rows(other.attention[index], row, own.grid) for other, row in others]  # type: ignore[index]
            ),
        ),
    )
    factors = _each(
        features.factors,
        lambda own, index: _joined(
            [_image(other.factors[index], row).resized(own.grid) for other, row in others]  # type: ignore[index]
        ),
    )
    return replace(features, attention=rows, factors=factors)


def _each(given: tuple[Any, ...] | None, change: Any) -> Any:
    return None if given is None else tuple(change(each, i) for i, each in enumerate(given))


def _uniform_rows(rows: Attention, _: int) -> Attention:
    return replace(rows, weights=torch.full_like(rows.weights, 1 / rows.weights.shape[-1]))


def _uniform_factors(factors: AttentionFactors, _: int) -> AttentionFactors:
    # Equal keys, so that key affinity is uniform as well.
    return replace(factors, q=torch.zeros_like(factors.q), k=torch.ones_like(factors.k))


def _local_rows(rows: Attention, _: int) -> Attention:
    q, k = _neighbourhoods(rows.grid, rows.num_prefix, rows.weights)
    return replace(rows, weights=attention_rows(q, k, rows.num_prefix, "mean"))


def _local_factors(factors: AttentionFactors, _: int) -> AttentionFactors:
    q, k = _neighbourhoods(factors.grid, factors.num_prefix, factors.q)
    return replace(factors, q=q, k=k, num_position=0)


def _neighbourhoods(grid: tuple[int, int], prefix: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns queries and keys whose softmax is a Gaussian of the distance between patches.

    Each position is on two circles, (cos θ, sin θ) of both its coordinates: products of queries
    and keys, of queries, and of keys are all r (cos Δθ_y + cos Δθ_x), which is a constant less
    r Δθ² / 2 to a twentieth while Δθ < π / 4, the grid's longer side.

    Args:
        grid: `(h, w)` of the patches.
        prefix: P, the tokens before them.
        like: `(B, heads, …)`, on the device that is wanted.

    Returns:
        Each `(B, heads, P + h*w, 4)`, in float32 or better; q is scaled as in `AttentionFactors`.
    """
    batch, heads, *_ = like.shape
    dtype = torch.promote_types(like.dtype, torch.float32)
    longest, width = max(grid), 4
    rows, columns = (torch.arange(n, device=like.device, dtype=dtype) for n in grid)
    places = torch.cartesian_prod(rows, columns)
    middle = places.mean(0, keepdim=True).expand(prefix, -1)
    angles = torch.cat([middle, places]) * (math.pi / 4 / longest)  # (P + h*w, 2)
    circles = torch.cat([angles.cos(), angles.sin()], 1)
    widest = max(1.0, longest / 4)
    spreads = torch.logspace(0, math.log10(widest), heads, device=like.device, dtype=dtype)
    radius = (4 * longest / math.pi / spreads) ** 2  # r
    vectors = radius.sqrt()[:, None, None] * circles
    # Only patches are looked at.
    seen = vectors.clone()
    seen[:, :prefix] = 0
    q, k = vectors * width**-0.25, seen * width**0.25
    return q.expand(batch, -1, -1, -1), k.expand(batch, -1, -1, -1)


def _image(factors: AttentionFactors, row: int) -> AttentionFactors:
    return replace(factors, q=factors.q[row : row + 1], k=factors.k[row : row + 1])


def _joined(images: Sequence[AttentionFactors]) -> AttentionFactors:
    # How many dimensions carry positions depends on the grid an image had: zeros change no product.
    widest = max(each.q.shape[-1] for each in images)
    q, k = (
        torch.cat([F.pad(part, (0, widest - part.shape[-1])) for part in parts])
        for parts in ([each.q for each in images], [each.k for each in images])
    )
    content = images[0].q.shape[-1] - images[0].num_position
    return replace(images[0], q=q, k=k, num_position=widest - content)


def _resized_rows(rows: Attention, row: int, grid: tuple[int, int]) -> Tensor:
    # (1, heads, 1, P + h*w): attention an image's patches receive or CLS gives, on another grid.
    maps = rows.patch_maps()[row : row + 1, :, 0]
    scale = maps.shape[-2:].numel() / (grid[0] * grid[1])
    resized = F.interpolate(maps, grid, mode="bilinear", align_corners=False) * scale
    prefix = rows.weights[row : row + 1, ..., : rows.num_prefix]
    return torch.cat([prefix, resized.flatten(2)[:, :, None]], -1)
