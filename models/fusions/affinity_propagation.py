"""Fusion 2: patches that attend to each other share their logits or features.

Personalised PageRank (Gasteiger et al. 2019, APPNP, eq. 4) on a graph whose edges are a learnt mix
of the heads' attention, as AFA (Ru et al. 2022) refines activation maps, and of the similarity of
keys, on which LOST (Siméoni et al. 2021) and TokenCut (Wang et al. 2022) cut their graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.attention import AttentionFactors
from models.backbones.base import Features
from models.fusions.base import Fusion
from models.heads.base import resize
from models.precision import at_least_float32

_START = 0.05  # share of the neighbours at the start: nearly the head alone
_SHARPNESS = 2.0
# Attention of all heads and images that is kept for backward; of more it is computed again.
_MOST_ENTRIES = 2**26


class AffinityPropagation(Fusion):
    """Z_{k+1} = (1 - α) Z_0 + α P Z_k, for k < `steps`.

    W = Σ softmax(w)_lh A_lh (+ for each block the row-normalised cosine of keys, negatives cut
    off), S = (W + Wᵀ) / 2, P = row-normalised S^γ. Learnt: α, γ, and w, one number per head and
    block.

    Args:
        channels: C of each map.
        strides: unused.
        num_classes: unused.
        heads: of every block whose attention is given.
        steps: how far labels travel.
        keys: whether similar keys are neighbours too.
        carries: `logits` of the head, or `features` before it, whose maps lie on the patches' grid.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        heads: Sequence[int],
        steps: int = 3,
        keys: bool = True,
        carries: Literal["logits", "features"] = "logits",
    ) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.heads = tuple(heads)
        self.steps, self.keys, self.carries = steps, keys, carries
        self.mix = nn.Parameter(torch.zeros(sum(heads) + keys * len(heads)))
        self.alpha = nn.Parameter(torch.logit(torch.tensor(_START)))
        self.gamma = nn.Parameter(torch.tensor(_SHARPNESS).expm1().log())  # of softplus

    def enrich(self, features: Features) -> Features:
        """See `Fusion.enrich`."""
        if self.carries == "logits":
            return features
        grid = _grid(features)
        if any(tuple(each.shape[-2:]) != grid for each in features.maps):
            raise ValueError(
                "--segmentation.fusion_carries features: the maps do not lie on the grid of the "
                "attention; use logits."
            )
        walk = self.edges(features)
        return replace(features, maps=tuple(self._propagated(x, walk) for x in features.maps))

    def refine(self, logits: Tensor, features: Features) -> Tensor:
        """See `Fusion.refine`; logits finer than the patches are corrected by the difference."""
        if self.carries == "features":
            return logits
        grid = _grid(features)
        coarse = logits
        if tuple(logits.shape[-2:]) != grid:
            coarse = F.interpolate(logits, grid, mode="bilinear", antialias=True)
        change = self._propagated(coarse, self.edges(features)) - coarse
        return logits + resize(change, (logits.shape[-2], logits.shape[-1]))

    def edges(self, features: Features) -> Tensor:
        """P, in float32 or better; see `Fusion.edges`."""
        given, grid = features.factors or (), _grid(features)
        with torch.autocast(given[0].q.device.type, enabled=False):
            batch = given[0].q.shape[0]
            entries = batch * sum(self.heads) * (grid[0] * grid[1]) ** 2
            mixed: Tensor = (
                checkpoint(self._mixed, given, use_reentrant=False)
                if entries > _MOST_ENTRIES
                else self._mixed(given)
            )
            symmetric = (mixed + mixed.transpose(1, 2)) / 2
            return (F.softplus(self.gamma) * symmetric.clamp_min(1e-12).log()).softmax(-1)

    def _mixed(self, given: Sequence[AttentionFactors]) -> Tensor:
        weights = iter(self.mix.softmax(0))
        mixed = torch.zeros((), device=self.mix.device)
        for factors in given:
            for head in range(factors.q.shape[1]):
                mixed = mixed + next(weights) * factors.patch_attention(head)
        for factors in given if self.keys else ():
            mixed = mixed + next(weights) * _key_similarity(factors.patch_keys())
        return mixed

    def _propagated(self, x: Tensor, walk: Tensor) -> Tensor:
        start = at_least_float32(x)[0].flatten(2).transpose(1, 2)  # (B, h*w, C)
        alpha, now = self.alpha.sigmoid(), start
        with torch.autocast(x.device.type, enabled=False):
            for _ in range(self.steps):
                now = (1 - alpha) * start + alpha * (walk @ now)
        return now.transpose(1, 2).unflatten(-1, x.shape[-2:]).to(x.dtype)

    def scalars(self) -> Sequence[nn.Parameter]:
        """All of them."""
        return list(self.parameters())

    def learnt(self) -> dict[str, float]:
        """alpha, gamma and the weight of every head, blocks from shallow to deep."""
        weights = self.mix.detach().softmax(0).tolist()
        names = [f"block{b}/head{h}" for b, count in enumerate(self.heads) for h in range(count)]
        names += [f"block{b}/keys" for b in range(len(self.heads) * self.keys)]
        return {
            "alpha": float(self.alpha.detach().sigmoid()),
            "gamma": float(F.softplus(self.gamma.detach())),
            **dict(zip(names, weights, strict=True)),
        }


def _grid(features: Features) -> tuple[int, int]:
    first, *others = (factors.grid for factors in features.factors or ())
    if any(grid != first for grid in others):
        grids = sorted({first, *others})
        raise ValueError(
            "--segmentation.attention_blocks: fusion2 mixes blocks of one resolution, these have "
            f"{' and '.join(f'{h} x {w}' for h, w in grids)} patches."
        )
    return first


def _key_similarity(keys: Tensor) -> Tensor:
    # (B, N, D) to (B, N, N): cosines, what is opposite cut off, rows summing to 1.
    keys = F.normalize(keys, dim=-1)
    cosines = (keys @ keys.transpose(1, 2)).relu()
    return cosines / cosines.sum(-1, keepdim=True).clamp_min(1e-12)
