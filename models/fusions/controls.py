"""Controls of an attention fusion: the same parameters, without the true attention.

A gain over the plain head shows that the fusion helps; a gain over its controls, that attention
does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import Attention, AttentionFactors, attention_rows
from models.backbones.base import Features

# Images of one size: their positions in the batch, and their features.
Group = tuple[list[int], Features]


def uniform(features: Features) -> Features:
    """Returns features with uniform attention."""
    return features.with_answers([_uniform(each) for each in features.answers])


def local(features: Features) -> Features:
    """Returns features whose patches attend to their neighbours, whatever the image shows.

    This is only the term that NACLIP (Hajimiri et al. 2024) adds to attention: a Gaussian of the
    distance. Its width is one patch in the first head and a quarter of the grid's longer side in
    the last, so that a mix of heads can find the best width. CLS attends to the middle.
    """
    return features.with_answers([_local(each) for each in features.answers])


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
    given = [other for other, _ in others]
    answers: list[Attention | AttentionFactors] = []
    for own, *theirs in zip(
        features.attention or (), *(other.attention or () for other in given), strict=True
    ):
        images = zip(theirs, others, strict=True)
        weights = [_resized_rows(each, row, own.grid) for each, (_, row) in images]
        answers.append(replace(own, weights=torch.cat(weights)))
    for own, *theirs in zip(
        features.factors or (), *(other.factors or () for other in given), strict=True
    ):
        images = zip(theirs, others, strict=True)
        answers.append(_joined([_image(each, row).resized(own.grid) for each, (_, row) in images]))
    return features.with_answers(answers)


def _uniform(answer: Attention | AttentionFactors) -> Attention | AttentionFactors:
    if isinstance(answer, Attention):
        rows = answer.weights
        return replace(answer, weights=torch.full_like(rows, 1 / rows.shape[-1]))
    # Equal keys, so that key affinity is uniform as well.
    return replace(answer, q=torch.zeros_like(answer.q), k=torch.ones_like(answer.k))


def _local(answer: Attention | AttentionFactors) -> Attention | AttentionFactors:
    prefix = answer.num_prefix
    if isinstance(answer, Attention):
        q, k = _neighbourhoods(answer.grid, prefix, answer.weights)
        return replace(answer, weights=attention_rows(q, k, prefix, "mean"))
    q, k = _neighbourhoods(answer.grid, prefix, answer.q)
    return replace(answer, q=q, k=k, num_position=0)


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
