"""The auxiliary losses of segmentation on the attention of the backbone and the fusions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from models.backbones.base import Features
from models.fusions.attention_fusion import Looks
from models.fusions.base import attention_maps
from models.heads.base import size_of
from models.losses.attention import (
    affinity_loss,
    diversity_loss,
    mass_loss,
    patch_shares,
    shape_loss,
)
from models.precision import at_least_float32
from utils.palette import has_background

_DIVERSITY_WEIGHT = 0.01
_OF_OBJECTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "mass": mass_loss,
    "shape": shape_loss,
}


def attention_loss(
    features: Features,
    looks: Looks,
    labels: Tensor,
    classes: Sequence[str],
    terms: Sequence[str],
    backbone_learns: bool,
) -> dict[str, Tensor]:
    """Returns the chosen terms that have something to train, already weighted.

    `mass`, `shape` and `diversity` apply to the heads of each block (if the backbone is trained)
    and to the class queries of fusion 3, where every class has its own map. `affinity` applies to
    the edges of fusion 2.

    Args:
        features: with attention.
        looks: what the fusions attended to in this training pass.
        labels: `(B, H, W)`, of the padded images; 255 void.
        classes: names by label; the background is not an object.
        terms: names from `config.names.ATTENTION_LOSSES`.
        backbone_learns: whether the attention itself has a gradient.
    """
    found: dict[str, list[Tensor]] = {}

    first = int(has_background(classes))  # label of the first object

    @cache  # blocks and fusions mostly share one
    def on(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        return patch_shares(labels, grid, len(classes))

    def objects_in(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (rows,) = at_least_float32(maps.flatten(2))
        shares, valid = on(size_of(maps))
        return rows, shares[:, first:].to(rows), valid

    with torch.autocast(labels.device.type, enabled=False):
        for maps in attention_maps(features) if backbone_learns else ():
            rows, shares, valid = objects_in(maps)
            for name, loss in _OF_OBJECTS.items():
                found.setdefault(name, []).append(loss(rows, shares, valid))
            found.setdefault("diversity", []).append(_DIVERSITY_WEIGHT * diversity_loss(rows))
        for maps in looks.class_maps:
            rows, shares, valid = objects_in(maps)
            for name, loss in _OF_OBJECTS.items():
                own = _of_own_map(loss, rows[:, first:], shares, valid)
                found.setdefault(name, []).append(own)
        for edges, grid in looks.edges:
            shares, valid = on(grid)
            found.setdefault("affinity", []).append(affinity_loss(edges, shares.to(edges), valid))
    return {name: torch.stack(found[name]).mean() for name in terms if name in found}


def _of_own_map(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor], maps: Tensor, shares: Tensor, valid: Tensor
) -> Tensor:
    # Compares every class that occurs with its own map: a batch of one head and one object each.
    image, label = (shares.sum(-1) > 0).nonzero(as_tuple=True)
    if not len(image):
        return maps.sum() * 0
    return loss(maps[image, label][:, None], shares[image, label][:, None], valid[image])
