"""Projector between backbone and loss (Barlow Twins, section 2 and official code)."""

from __future__ import annotations

from torch import nn


def projector(in_dim: int, dim: int, layers: int = 3) -> nn.Sequential:
    """`(N, in_dim)` to `(N, dim)`: bias-free linear layers, BatchNorm and ReLU between them.

    Args:
        in_dim: width of the backbone's pooled features.
        dim: width D of every layer.
        layers: number of linear layers.

    Raises:
        ValueError: no layer.
    """
    if layers < 1:
        raise ValueError(f"projector_layers {layers}: expected at least 1.")
    modules: list[nn.Module] = []
    for width in [in_dim] + [dim] * (layers - 2) if layers > 1 else []:
        modules += [nn.Linear(width, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU(inplace=True)]
    return nn.Sequential(*modules, nn.Linear(dim if modules else in_dim, dim, bias=False))
