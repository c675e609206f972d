"""The nearest of known features, searched exactly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.precision import unrounded_factors


def nearest(queries: Tensor, known: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k nearest of each query by cosine, the nearest first.

    Args:
        queries: `(M, D)` float32, of norm 1.
        known: `(N, D)` float32, of norm 1.
        k: at most N. Of those equally near, at the last place, any may be taken.

    Returns:
        Their cosines and places among the known ones, both `(M, k)`. The cosines of all, `(M, N)`,
        are held meanwhile, on CPU twice for a moment.
    """
    with unrounded_factors(queries.device):
        cosines, places = _products(queries, known).topk(k, dim=1)
    return cosines, places


def _products(queries: Tensor, known: Tensor) -> Tensor:
    """`queries @ known.T`; on CPU by oneDNN, which MKL's product takes up to twice as long as."""
    by_onednn = torch.backends.mkldnn.enabled and torch.backends.mkldnn.is_available()
    if queries.device.type != "cpu" or not by_onednn or not queries.numel():
        return queries @ known.T
    return F.linear(queries.to_mkldnn(), known).to_dense()
