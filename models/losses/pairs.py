"""What a loss on two views of a batch needs."""

from __future__ import annotations

from torch import Tensor


def check_pair(z1: Tensor, z2: Tensor, statistic: str) -> None:
    """Checks two batches of embeddings, `(N, D)` each.

    Args:
        z1: of one view.
        z2: of the other.
        statistic: what is computed over the batch, in words.

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

    Nothing is subtracted, which would cancel, and no mask is made or indexed with, for whose count
    a GPU would be waited.
    """
    return matrix.square().fill_diagonal_(0).sum()
