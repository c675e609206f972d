"""Weighted k-nearest-neighbour classification (Wu et al. 2018; DINO, appendix F)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.measures.nearest import nearest

_QUERIES_AT_ONCE = 512


@torch.no_grad()
def knn_scores(
    queries: Tensor,
    bank: Tensor,
    labels: Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """Lets the k nearest of the bank vote, with weights proportional to exp(cosine / T).

    Args:
        queries: features `(M, D)`.
        bank: features `(N, D)`.
        labels: of the bank, `(N,)`.
        num_classes: C.
        k: number of neighbours; the whole bank if it is smaller.
        temperature: T.

    Returns:
        `(M, C)`, the shares of the votes, summing to 1.
    """
    queries, bank = F.normalize(queries.float(), dim=1), F.normalize(bank.float(), dim=1)
    votes = []
    for some in queries.split(_QUERIES_AT_ONCE):
        cosines, places = nearest(some, bank, min(k, len(bank)))  # (m, k)
        weights = (cosines / temperature).softmax(1)  # exp(1 / T) may exceed float32
        score = weights.new_zeros(len(some), num_classes)
        votes.append(score.scatter_add_(1, labels[places], weights))
    return torch.cat(votes)


def knn_accuracy(
    queries: Tensor,
    truth: Tensor,
    bank: Tensor,
    labels: Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of queries whose class `truth` `(M,)` gets most votes; see `knn_scores`."""
    scores = knn_scores(queries, bank, labels, num_classes, k, temperature)
    return float((scores.argmax(1) == truth).float().mean())
