"""Fusion 2: patches that attend to each other share their logits or features.

Personalised PageRank (Gasteiger et al. 2019, APPNP, eq. 4) on a graph whose edges are a learnt mix
of: the heads' attention, as AFA (Ru et al. 2022) uses it to refine activation maps; queries that
attend to queries and keys to keys (SCLIP, Wang et al. 2023); and the similarity of keys, on which
LOST (Siméoni et al. 2021) and TokenCut (Wang et al. 2022) cut their graphs. The alternative to
compare with is the similarity of the backbone's output, which needs no attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.backbones.base import Features
from models.fusions.base import Fusion
from models.heads.base import resize, size_of
from models.precision import at_least_float32

_OF_HEADS = ("qk", "qq", "kk")
_EDGES = (*_OF_HEADS, "keys", "tokens")

_START = 0.05  # α at the start: logits come almost only from the head
_SHARPNESS = 2.0
# Numbers of attention (all heads and images) to keep for backward; if more, it is recomputed.
_MOST_ENTRIES = 2**26


class AffinityPropagation(Fusion):
    """Z_{k+1} = (1 - α) Z_0 + α P Z_k, for k < `steps`.

    W = Σ softmax(w)_e A_e over all graphs e, S = (W + Wᵀ) / 2, P = row-normalised S^γ. Learnt: α, γ
    and w, one number for each graph.

    Args:
        channels: C of each map.
        strides: unused.
        num_classes: unused.
        heads: number of heads of every block whose attention is given.
        steps: number of propagation steps.
        edges: the graphs between patches, any of: `qk` (attention) | `qq`, `kk` (softmax of queries
            with queries, or keys with keys), for every head and block | `keys` (cosine of the keys
            of all heads, for every block) | `tokens` (cosine in the deepest map). Negative cosines
            become 0, rows sum to 1.
        carries: what is propagated: `logits` of the head, or `features` before it, whose maps must
            lie on the patches' grid.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        heads: Sequence[int],
        steps: int = 3,
        edges: Sequence[str] = ("qk", "keys"),
        carries: Literal["logits", "features"] = "logits",
    ) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.heads = tuple(heads)
        self.steps, self.carries = steps, carries
        self.kinds: tuple[Any, ...] = tuple(kind for kind in _EDGES if kind in edges)
        self.mix = nn.Parameter(torch.zeros(len(self._names())))
        self.alpha = nn.Parameter(torch.logit(torch.tensor(_START)))
        self.gamma = nn.Parameter(torch.tensor(_SHARPNESS).expm1().log())  # inverse of softplus

    def enrich(self, features: Features, edges: Tensor | None) -> Features:
        """See `Fusion.enrich`."""
        if self.carries == "logits":
            return features
        grid = _grid(features)
        if any(size_of(each) != grid for each in features.maps):
            raise ValueError(
                "--segmentation.fusion_carries features: the maps do not lie on the grid of the "
                "attention; use logits."
            )
        assert edges is not None
        return replace(features, maps=tuple(self._propagated(x, edges) for x in features.maps))

    def refine(self, logits: Tensor, features: Features, edges: Tensor | None) -> Tensor:
        """See `Fusion.refine`; adds the upsampled change to logits that are finer than the patches.

        In float32 or better: the change is small, and a CPU cannot average half precision.
        """
        if self.carries == "features":
            return logits
        assert edges is not None
        grid = _grid(features)
        (logits,) = at_least_float32(logits)
        coarse = logits
        if size_of(logits) != grid:
            coarse = F.interpolate(logits, grid, mode="bilinear", antialias=True)
        change = self._propagated(coarse, edges) - coarse
        return logits + resize(change, size_of(logits))

    def edges(self, features: Features) -> Tensor:
        """P, in float32 or better; see `Fusion.edges`."""
        grid, attending = _grid(features), [kind for kind in self.kinds if kind in _OF_HEADS]
        with torch.autocast(features.pooled.device.type, enabled=False):
            batch = features.pooled.shape[0]
            entries = batch * len(attending) * sum(self.heads) * (grid[0] * grid[1]) ** 2
            mixed: Tensor = (
                checkpoint(self._mixed, features, use_reentrant=False)
                if entries > _MOST_ENTRIES
                else self._mixed(features)
            )
            symmetric = (mixed + mixed.transpose(1, 2)) / 2
            return (F.softplus(self.gamma) * symmetric.clamp_min(1e-12).log()).softmax(-1)

    def _mixed(self, features: Features) -> Tensor:
        mixed = torch.zeros((), device=self.mix.device)
        for weight, edges in zip(self.mix.softmax(0), self._all_edges(features), strict=True):
            mixed = mixed + weight * edges
        return mixed

    def _all_edges(self, features: Features) -> Iterator[Tensor]:
        # Each (B, h*w, h*w), in the order of `_names`.
        for kind in self.kinds:
            if kind == "tokens":
                tokens = resize(at_least_float32(features.maps[-1])[0], _grid(features))
                yield _cosines(tokens.flatten(2).transpose(1, 2))
                continue
            for factors in features.factors or ():
                if kind == "keys":
                    yield _cosines(factors.patch_keys())
                else:
                    yield from (factors.patch_attention(h, kind) for h in range(factors.q.shape[1]))

    def _names(self) -> list[str]:
        names = []
        for kind in self.kinds:
            if kind == "tokens":
                names.append("tokens")
            elif kind == "keys":
                names += [f"block{block}/keys" for block in range(len(self.heads))]
            else:
                each = "head" if kind == "qk" else kind
                heads = enumerate(self.heads)
                names += [f"block{block}/{each}{h}" for block, n in heads for h in range(n)]
        return names

    def _propagated(self, x: Tensor, walk: Tensor) -> Tensor:
        start = at_least_float32(x)[0].flatten(2).transpose(1, 2)  # (B, h*w, C)
        alpha, now = self.alpha.sigmoid(), start
        with torch.autocast(x.device.type, enabled=False):
            for _ in range(self.steps):
                now = (1 - alpha) * start + alpha * (walk @ now)
        return now.transpose(1, 2).unflatten(-1, x.shape[-2:]).to(x.dtype)

    def scalars(self) -> Sequence[nn.Parameter]:
        """All of its parameters."""
        return list(self.parameters())

    def learnt(self) -> dict[str, float]:
        """alpha, gamma and the weight of each graph, blocks from shallow to deep."""
        return {
            "alpha": float(self.alpha.detach().sigmoid()),
            "gamma": float(F.softplus(self.gamma.detach())),
            **dict(zip(self._names(), self.mix.detach().softmax(0).tolist(), strict=True)),
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


def _cosines(vectors: Tensor) -> Tensor:
    # (B, N, D) to (B, N, N): cosines, negative ones set to 0, rows summing to 1.
    vectors = F.normalize(vectors, dim=-1)
    cosines = (vectors @ vectors.transpose(1, 2)).relu()
    return cosines / cosines.sum(-1, keepdim=True).clamp_min(1e-12)
