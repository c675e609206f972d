"""Helpers for losses on two views of a batch."""

from __future__ import annotations

from torch import Tensor


def check_pair(z1: Tensor, z2: Tensor, statistic: str) -> None:
    """Checks two batches of embeddings, `(N, D)` each.

    Args:
        z1: of one view.
        z2: of the other.
        statistic: name of what is computed over the batch, for the message.

    Raises:
        ValueError: shapes differ, or fewer than two samples.
    """
    if z1.shape != z2.shape or z1.dim() != 2:
        raise ValueError(
            f"expected two (N, D) of one shape, got {tuple(z1.shape)}, {tuple(z2.shape)}."
        )
    if len(z1) < 2:
        raise ValueError(f"A {statistic} needs a batch of at least 2 images, got 1.")


def off_diagonal_squares(matrix: Tensor) -> Tensor:
    """Returns Σ_{i≠j} M_ij² of a matrix `(D, D)`.

    Does not subtract the diagonal, which would lose precision, and does not index with a mask,
    which would wait for the GPU to count it.
    """
    return matrix.square().fill_diagonal_(0).sum()
