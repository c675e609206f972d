"""Whether features have collapsed, in numbers that need no labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_std(features: Tensor) -> Tensor:
    """Standard deviation of L2-normalised features `(N, D)`, mean over dimensions, times sqrt(D).

    1 if directions are spread evenly, 0 after collapse.
    """
    return F.normalize(features, dim=1).std(0, correction=0).mean() * features.shape[1] ** 0.5


def mean_cosine(features: Tensor) -> Tensor:
    """Mean cosine between the features `(N, D)` of different images; 1 after collapse."""
    count = len(features)
    total = F.normalize(features, dim=1).sum(0).square().sum()
    return (total - count) / (count * (count - 1))


def effective_rank(features: Tensor) -> Tensor:
    """RankMe (Garrido et al. 2023): exp of the entropy of the normalised singular values.

    Args:
        features: `(N, D)`; the rank is at most min(N, D).
    """
    # From the smaller Gram matrix, which GPUs decompose much faster than the features. In float64,
    # since its eigenvalues are squares; Apple's GPUs lack float64.
    exact = (features.cpu() if features.device.type == "mps" else features).double()
    gram = exact @ exact.T if len(exact) < exact.shape[1] else exact.T @ exact
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    share = singular / singular.sum().clamp_min(1e-12)
    return torch.exp(torch.special.entr(share).sum())
