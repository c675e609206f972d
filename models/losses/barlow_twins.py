"""Barlow Twins loss, and values to compare it with (Zbontar et al. 2021, arXiv 2103.03230)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.losses.pairs import check_pair, off_diagonal_squares
from models.precision import at_least_float32


def cross_correlation(z1: Tensor, z2: Tensor, eps: float = 1e-5) -> Tensor:
    """Cross-correlation matrix of two batches of embeddings (eq. 2).

    Each dimension is centred and divided by its biased standard deviation over the batch, as
    `BatchNorm1d(affine=False)` does: with the unbiased one perfect agreement would give (N-1)/N.

    Args:
        z1: `(N, D)`.
        z2: `(N, D)`.
        eps: added to the variances.

    Returns:
        `(D, D)` in float32, or float64 for float64 input, whatever autocast says.

    Raises:
        ValueError: shapes differ, or fewer than two samples.
    """
    check_pair(z1, z2, "correlation")
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = (_standardised(z, eps) for z in (z1, z2))
        return z1.T @ z2 / len(z1)


def _standardised(z: Tensor, eps: float = 1e-5) -> Tensor:
    (z,) = at_least_float32(z)
    return F.batch_norm(z, None, None, training=True, eps=eps)


def barlow_twins_loss(correlation: Tensor, lambd: float) -> Tensor:
    """Σ_i (1 - C_ii)² + λ Σ_i Σ_{j≠i} C_ij² (eq. 1).

    Args:
        correlation: C, `(D, D)`.
        lambd: λ.
    """
    with torch.autocast(correlation.device.type, enabled=False):
        diagonal = correlation.diagonal()
        invariance = (1 - diagonal).square().sum()
        return invariance + lambd * off_diagonal_squares(correlation)


def mixed_loss(mixed: Tensor, z1: Tensor, z2: Tensor, alpha: float, order: Tensor) -> Tensor:
    """How much correlations of mixed images differ from the mix of the correlations.

    Σ over both views v of ‖C(z_m, z_v) - α C(z1, z_v) - (1 - α) C(π z2, z_v)‖² (Mixed Barlow
    Twins, Bandara et al. 2023, arXiv 2312.02151; summed, with gradients through every term, as in
    its official code for CIFAR). C is linear in its standardised arguments, so one matrix per view
    is enough.

    Args:
        mixed: z_m, `(N, D)`, embeddings of α x1 + (1 - α) π x2.
        z1: `(N, D)`.
        z2: `(N, D)`.
        alpha: α.
        order: π, `(N,)`.
    """
    with torch.autocast(mixed.device.type, enabled=False):
        mixed, z1, z2 = (_standardised(z) for z in (mixed, z1, z2))
        rest = mixed - alpha * z1 - (1 - alpha) * z2[order]
        return torch.stack([(rest.T @ z / len(z)).square().sum() for z in (z1, z2)]).sum()


def noise_floor(dim: int, batch_size: int, lambd: float) -> float:
    """Loss of perfectly invariant embeddings whose dimensions are independent.

    Correlations of N independent samples have variance 1/(N-1), so λ·D(D-1)/(N-1) remains: noise
    that training cannot remove. Only features fitted to the batch can be lower, see `lower_bound`.
    """
    return lambd * dim * (dim - 1) / (batch_size - 1)


def lower_bound(dim: int, batch_size: int, lambd: float) -> float:
    """Smallest loss of perfectly invariant embeddings: C has rank at most N-1.

    With trace D that gives ‖C‖² ≥ D²/(N-1), hence λ·D·max(0, D-N+1)/(N-1).
    """
    return lambd * dim * max(0, dim - batch_size + 1) / (batch_size - 1)


@dataclass(frozen=True)
class CorrelationSummary:
    """A correlation matrix in two numbers.

    Attributes:
        diagonal_mean: 1 if the views agree.
        off_diagonal_rms: 0 without redundancy; about 1/sqrt(N-1) for independent features.
    """

    diagonal_mean: Tensor
    off_diagonal_rms: Tensor


@torch.no_grad()
def summarise(correlation: Tensor) -> CorrelationSummary:
    """Summarises C `(D, D)`."""
    pairs = len(correlation) * (len(correlation) - 1)
    return CorrelationSummary(
        diagonal_mean=correlation.diagonal().mean(),
        off_diagonal_rms=(off_diagonal_squares(correlation) / pairs).sqrt(),
    )
