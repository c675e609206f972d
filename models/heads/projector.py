"""Projector between backbone and loss (Barlow Twins, section 2 and official code; LeJEPA)."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def projector(
    in_dim: int, dim: int, layers: int = 3, hidden: int | None = None, bias: bool = False
) -> nn.Sequential:
    """`(N, in_dim)` to `(N, dim)`: linear layers with BatchNorm and ReLU between them.

    Args:
        in_dim: width of the backbone's pooled features.
        dim: width D of the last layer.
        layers: number of linear layers.
        hidden: width of the other layers; None: D.
        bias: whether the last layer has a bias; the others have that of BatchNorm.

    Raises:
        ValueError: there are no layers.
    """
    if layers < 1:
        raise ValueError(f"projector_layers {layers}: expected at least 1.")
    modules: list[nn.Module] = []
    hidden = hidden or dim
    widths = [in_dim] + [hidden] * (layers - 1)
    for before, width in pairwise(widths):
        norm = nn.BatchNorm1d(width)
        modules += [nn.Linear(before, width, bias=False), norm, nn.ReLU(inplace=True)]
    return nn.Sequential(*modules, nn.Linear(widths[-1], dim, bias=bias))
