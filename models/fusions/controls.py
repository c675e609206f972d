"""Controls of an attention fusion: the same parameters, without what is in the true attention.

A gain over the plain head shows that the fusion helps, one over its controls that attention does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import Attention, AttentionFactors
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


def _image(factors: AttentionFactors, row: int) -> AttentionFactors:
    return replace(factors, q=factors.q[row : row + 1], k=factors.k[row : row + 1])


def _joined(images: Sequence[AttentionFactors]) -> AttentionFactors:
    q, k = (torch.cat([getattr(each, name) for each in images]) for name in ("q", "k"))
    return replace(images[0], q=q, k=k)


def _resized_rows(rows: Attention, row: int, grid: tuple[int, int]) -> Tensor:
    # (1, heads, 1, P + h*w): attention an image's patches receive or CLS gives, on another grid.
    maps = rows.patch_maps()[row : row + 1, :, 0]
    scale = maps.shape[-2:].numel() / (grid[0] * grid[1])
    resized = F.interpolate(maps, grid, mode="bilinear", align_corners=False) * scale
    prefix = rows.weights[row : row + 1, ..., : rows.num_prefix]
    return torch.cat([prefix, resized.flatten(2)[:, :, None]], -1)
