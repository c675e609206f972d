"""Losses that push attention towards objects, and heads towards different patches.

Void pixels never count: a patch's class shares ignore them, and patches of only void are left out.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.precision import at_least_float32

TEMPERATURE = 0.1  # of the softmin that assigns a head to an object
SHARPNESS = 4.0  # of the soft threshold at uniform attention in the shape loss
_TINY = 1e-8


def patch_shares(labels: Tensor, grid: tuple[int, int], num_classes: int) -> tuple[Tensor, Tensor]:
    """Returns the share of every class in every patch, and which patches count.

    Args:
        labels: `(B, H, W)`, 255 void.
        grid: `(h, w)` of the patches.
        num_classes: C.

    Returns:
        `(B, C, h*w)`, summing to 1 over the classes for patches that count and 0 elsewhere, and
        `(B, h*w)` bool.
    """
    # Class by class: one-hot labels would need C times the memory of masks with 8 bytes a pixel.
    pooled = [
        F.adaptive_avg_pool2d((labels == each).float(), grid).flatten(1)
        for each in range(num_classes)
    ]
    sums = torch.stack(pooled, 1)
    seen = sums.sum(1)
    return sums / seen[:, None].clamp_min(_TINY), seen > 0


def matched_heads(maps: Tensor, shares: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns how badly each head covers each object, and which head is assigned to it.

    Args:
        maps: attention over patches, `(B, heads, N)`, not negative.
        shares: `(B, C, N)` of the objects, without a background; see `patch_shares`.
        valid: `(B, N)` bool.

    Returns:
        -log of the mass inside, `(B, C, heads)`; its softmin over the heads as their weights, which
        sum to 1; which objects occur, `(B, C)` bool.
    """
    inside = _renormalised(maps, valid) @ shares.transpose(1, 2)  # (B, heads, C)
    cost = -inside.transpose(1, 2).clamp_min(_TINY).log()
    return cost, (-cost.detach() / TEMPERATURE).softmax(-1), shares.sum(-1) > 0


def mass_loss(maps: Tensor, shares: Tensor, valid: Tensor) -> Tensor:
    """-log of the best-covering head's attention inside each object; mean over objects.

    0 if for every object some head attends to nothing else. Arguments as in `matched_heads`.
    """
    cost, weights, present = matched_heads(maps, shares, valid)
    return _mean_over((cost * weights).sum(-1), present)


def shape_loss(maps: Tensor, shares: Tensor, valid: Tensor) -> Tensor:
    """1 - soft IoU of each object with the patches that its head attends to above average.

    Prevents a single patch from satisfying the mass loss. Arguments as in `matched_heads`.
    """
    _, weights, present = matched_heads(maps, shares, valid)
    count = valid.sum(-1)[:, None, None]
    above = (SHARPNESS * torch.log(_renormalised(maps, valid) * count + 1e-6)).sigmoid()
    above = above * valid[:, None]
    both = shares @ above.transpose(1, 2)  # (B, C, heads)
    union = shares.sum(-1)[..., None] + above.sum(-1)[:, None] - both
    return _mean_over((weights * (1 - both / union.clamp_min(_TINY))).sum(-1), present)


def diversity_loss(maps: Tensor) -> Tensor:
    """Mean cosine of the attention of different heads, `(B, heads, N)`; 0 when none overlap."""
    heads = maps.shape[1]
    if heads < 2:
        return maps.sum() * 0
    directions = F.normalize(maps, dim=-1)
    cosines = directions @ directions.transpose(1, 2)
    return (cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(-1)).mean() / (
        heads * (heads - 1)
    )


def affinity_loss(edges: Tensor, shares: Tensor, valid: Tensor) -> Tensor:
    """-log of the share of a patch's edges that lead to its own class; classes weigh the same.

    Serves the purpose of AFA's affinity loss (Ru et al. 2022, eq. 6) for edges that sum to 1: more
    weight within the class means less to other classes.

    Args:
        edges: `(B, N, N)`, rows sum to 1.
        shares: `(B, C, N)`, including the background.
        valid: `(B, N)` bool; edges to void patches are left out.
    """
    edges = edges * valid[:, None]
    edges = edges / edges.sum(-1, keepdim=True).clamp_min(_TINY)
    to_same = ((edges @ shares.transpose(1, 2)) * shares.transpose(1, 2)).sum(-1)  # (B, N)
    best = shares.amax(1)  # the most that a patch of several classes can reach
    cost = -(to_same.clamp_min(_TINY) / best.clamp_min(_TINY)).log() * valid
    sizes = shares.sum((0, 2))  # patches of each class
    by_class = (shares * cost[:, None]).sum((0, 2)) / sizes.clamp_min(_TINY)
    return _mean_over(by_class, sizes > 0)


def head_information(maps: Tensor) -> Tensor:
    """Mutual information of head and attended patch, I(head; patch) / log(heads), `(B,)`.

    This is the Jensen-Shannon divergence of the heads' attention (Lin 1991, eq. 4.1),
    H(mean) - mean(H): 1 if no two heads attend to the same patch, 0 if all do the same.

    Args:
        maps: `(B, heads, N)`, not negative, at least two heads.
    """
    (maps,) = at_least_float32(maps)
    maps = maps / maps.sum(-1, keepdim=True).clamp_min(_TINY)
    return (_entropy(maps.mean(1)) - _entropy(maps).mean(1)) / math.log(maps.shape[1])


def _entropy(p: Tensor) -> Tensor:
    # Not torch.special.entr, whose gradient at 0 is infinite.
    return -(p * p.clamp_min(_TINY).log()).sum(-1)


def _renormalised(maps: Tensor, valid: Tensor) -> Tensor:
    maps = maps * valid[:, None]
    return maps / maps.sum(-1, keepdim=True).clamp_min(_TINY)


def _mean_over(values: Tensor, which: Tensor) -> Tensor:
    return (values * which).sum() / which.sum().clamp_min(1)
