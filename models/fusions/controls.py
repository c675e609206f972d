"""Controls of an attention fusion: the same parameters, without the true attention.

A gain over the plain head shows that the fusion helps; a gain over its controls, that attention
does.
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

# Images of one size: their positions in the batch, and their features.
Group = tuple[list[int], Features]


def uniform(features: Features) -> Features:
    """Returns features with uniform attention."""
    return replace(
        features,
        attention=_each(features.attention, _uniform_rows),
        factors=_each(features.factors, _uniform_factors),
    )


def local(features: Features) -> Features:
    """Returns features whose patches attend to their neighbours, whatever the image shows.

    This is only the term that NACLIP (Hajimiri et al. 2024) adds to attention: a Gaussian of the
    distance. Its width is one patch in the first head and a quarter of the grid's longer side in
    the last, so that a mix of heads can find the best width. CLS attends to the middle.
    """
    return replace(
        features,
        attention=_each(features.attention, _local_rows),
        factors=_each(features.factors, _local_factors),
    )


def shuffled(groups: Sequence[Group]) -> list[Group]:
    """Gives every image the attention of the next one in the batch, resized to its grid.

    Raises:
        ValueError: the batch has only one image.
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

    Each coordinate of a position becomes a point (cos θ, sin θ) on a circle. Products of queries
    with keys, of queries, and of keys are all r (cos Δθ_y + cos Δθ_x): a constant minus r Δθ² / 2,
    with an error of a twentieth at most as Δθ < π / 4 along the grid's longer side.

    Args:
        grid: `(h, w)` of the patches.
        prefix: P, the tokens before them.
        like: `(B, heads, …)`, on the target device.

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
    # The number of position dimensions depends on the image's grid: zeros change no product.
    widest = max(each.q.shape[-1] for each in images)
    q, k = (
        torch.cat([F.pad(part, (0, widest - part.shape[-1])) for part in parts])
        for parts in ([each.q for each in images], [each.k for each in images])
    )
    content = images[0].q.shape[-1] - images[0].num_position
    return replace(images[0], q=q, k=k, num_position=widest - content)


def _resized_rows(rows: Attention, row: int, grid: tuple[int, int]) -> Tensor:
    # (1, heads, 1, P + h*w): one image's attention of CLS, or received by patches, on another grid.
    maps = rows.patch_maps()[row : row + 1, :, 0]
    scale = maps.shape[-2:].numel() / (grid[0] * grid[1])
    resized = F.interpolate(maps, grid, mode="bilinear", align_corners=False) * scale
    prefix = rows.weights[row : row + 1, ..., : rows.num_prefix]
    return torch.cat([prefix, resized.flatten(2)[:, :, None]], -1)
