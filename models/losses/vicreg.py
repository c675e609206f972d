"""VICReg's three terms (Bardes, Ponce & LeCun 2022, arXiv 2105.04906, section 4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.losses.pairs import check_pair, off_diagonal_squares
from models.precision import at_least_float32

_EPS = 1e-4  # added to the variances


class VICRegTerms(NamedTuple):
    """The terms of VICReg, which are added with a weight each.

    Attributes:
        invariance: mean squared difference of the two views; 2 for independent ones of variance 1.
        variance: how much standard deviations fall short of 1, mean over dimensions and views.
        covariance: Σ_{i≠j} Cov_ij² / D of each view, summed over both.
    """

    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def vicreg_terms(z1: Tensor, z2: Tensor) -> VICRegTerms:
    """Compares two batches of embeddings, and measures the spread of each.

    Unlike in Barlow Twins, embeddings are not divided by the batch's standard deviation: the batch
    matters only through means for each dimension and each pair of dimensions.

    Args:
        z1: `(N, D)`.
        z2: `(N, D)`.

    Returns:
        The terms in float32, or float64 for float64 input, whatever autocast says.

    Raises:
        ValueError: shapes differ, or fewer than two samples.
    """
    check_pair(z1, z2, "variance")
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = at_least_float32(z1, z2)
        covariances = [_covariance(z) for z in (z1, z2)]
        lacking = [F.relu(1 - (c.diagonal() + _EPS).sqrt()).mean() for c in covariances]
        return VICRegTerms(
            F.mse_loss(z1, z2),
            torch.stack(lacking).mean(),
            torch.stack([off_diagonal_squares(c) / len(c) for c in covariances]).sum(),
        )


def _covariance(z: Tensor) -> Tensor:
    z = z - z.mean(0)
    return z.T @ z / (len(z) - 1)
