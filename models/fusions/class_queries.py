"""Fusion 3: class queries attend to the patches, guided by attention maps, and refine logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones.base import Features
from models.fusions.base import Fusion, attention_maps, log_maps
from models.heads.base import concatenated, resize, size_of

WIDTH = 256
_DROPOUT = 0.1


class ClassQueries(Fusion):
    """Gated cross-attention between one query per class and the patches.

    M_ci = Q_c K_i / √d + Σ_h b_ch log(N a_hi); q' = Q + softmax_i(M) V;
    X'_i = K_i + gate_i · Σ_c softmax_c(M)_ci W q'_c; logits gain s · LN_c(cos(q'_c, X'_i)), the
    last as in Segmenter (Strudel et al. 2021). b and s start at 0: at first only the head counts.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        heads: Sequence[int],
    ) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.queries = nn.Parameter(torch.empty(num_classes, WIDTH))
        nn.init.trunc_normal_(self.queries, std=0.02)
        self.bias = nn.Parameter(torch.zeros(num_classes, sum(heads)))
        self.norm = nn.LayerNorm(sum(channels))
        self.dropout = nn.Dropout(_DROPOUT)
        self.to_keys = nn.Linear(sum(channels), WIDTH)
        self.to_values = nn.Linear(sum(channels), WIDTH)
        self.to_gate = nn.Linear(sum(channels) + sum(heads), WIDTH)
        self.to_context = nn.Linear(WIDTH, WIDTH)
        self.class_norm = nn.LayerNorm(num_classes)
        self.strength = nn.Parameter(torch.zeros(()))

    def refine(self, logits: Tensor, features: Features, edges: Tensor | None) -> Tensor:
        """See `Fusion.refine`."""
        return self.looking(logits, features, edges)[0]

    def looking(
        self, logits: Tensor, features: Features, edges: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `Fusion.looking`."""
        x, maps, (height, width) = self._inputs(features)
        keys, matches = self._matches(x, maps)
        looks = matches.softmax(-1)  # (B, C, N)
        queries = self.queries + looks @ self.to_values(x)  # (B, C, d)
        context = matches.softmax(1).transpose(1, 2) @ self.to_context(queries)  # (B, N, d)
        patches = keys + self.to_gate(torch.cat([x, maps], -1)).sigmoid() * context
        cosines = F.normalize(patches, dim=-1) @ F.normalize(queries, dim=-1).transpose(1, 2)
        answer = self.class_norm(cosines).transpose(1, 2).unflatten(-1, (height, width))
        refined = logits + self.strength * resize(answer, size_of(logits))
        return refined, looks.unflatten(-1, (height, width))

    def _inputs(self, features: Features) -> tuple[Tensor, Tensor, tuple[int, int]]:
        # Tokens (B, N, D), log maps (B, N, heads) and the grid of the finest map.
        joined = concatenated(features.maps)
        grid = size_of(joined)
        maps = [resize(log_maps(each), grid) for each in attention_maps(features)]
        tokens = self.dropout(self.norm(joined.flatten(2).transpose(1, 2)))
        return tokens, torch.cat(maps, 1).flatten(2).transpose(1, 2).to(tokens.dtype), grid

    def _matches(self, x: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        # Keys (B, N, d) and M (B, C, N).
        keys = self.to_keys(x)
        matches = self.queries @ keys.transpose(1, 2) * WIDTH**-0.5
        return keys, matches + self.bias @ maps.transpose(1, 2)

    def scalars(self) -> Sequence[nn.Parameter]:
        """The parameters that start at 0."""
        return [self.bias, self.strength]

    def learnt(self) -> dict[str, float]:
        """strength: weight relative to the head; map_bias: mean weight of an attention map."""
        return {
            "strength": float(self.strength.detach()),
            "map_bias": float(self.bias.detach().abs().mean()),
        }
