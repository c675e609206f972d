"""LeJEPA's losses: views predict their mean, embeddings become an isotropic Gaussian.

Balestriero & LeCun 2025 (arXiv 2511.08544): formulae of the paper, settings of its minimal example.
The second loss is SIGReg, a sliced Epps-Pulley test (Epps & Pulley 1983).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.precision import at_least_float32


def prediction_loss(views: Tensor) -> Tensor:
    """Mean over views and images of ‖z_v - z̄‖² / K, z̄ the mean over the views.

    0 if the views of an image agree; 1 - 1/V for independent views of unit variance.

    Args:
        views: embeddings of V views of the same N images, `(V, N, K)`.

    Returns:
        A scalar in float32, or float64 for float64 input, whatever autocast says.
    """
    with torch.autocast(views.device.type, enabled=False):
        (views,) = at_least_float32(views)
        return (views - views.mean(0)).square().mean()


def random_directions(dim: int, count: int, generator: torch.Generator) -> Tensor:
    """Draws directions uniformly on the sphere: `(dim, count)` float32, columns of length 1.

    Args:
        dim: K.
        count: M.
        generator: on the CPU, so that all devices and processes draw the same.
    """
    return F.normalize(torch.randn(dim, count, generator=generator), dim=0)


def sigreg(embeddings: Tensor, directions: Tensor, knots: int, limit: float) -> Tensor:
    """Epps-Pulley statistic against N(0, 1), mean over random directions (SIGReg).

    For the N projections on a direction: N ∫ |φ̂(t) - exp(-t²/2)|² exp(-t²/2) dt from -limit to
    limit, where φ̂ is their empirical characteristic function. The trapezoidal rule runs over half
    of the symmetric interval. See `expected_sigreg` for the value of Gaussian embeddings, and
    `collapsed_sigreg` for that of embeddings that are all 0.

    Args:
        embeddings: `(N, K)` of all processes: the statistic is not a mean over images.
        directions: unit vectors as columns, `(K, M)`.
        knots: number of points t in [0, limit].
        limit: where the integral ends.

    Returns:
        A scalar in float32, or float64 for float64 input, whatever autocast says.

    Raises:
        ValueError: shapes are wrong, or there are fewer than two images.
    """
    if embeddings.dim() != 2 or directions.shape[0] != embeddings.shape[1]:
        raise ValueError(
            "expected embeddings (N, K) and directions (K, M), got "
            f"{tuple(embeddings.shape)}, {tuple(directions.shape)}."
        )
    if len(embeddings) < 2:
        raise ValueError("A distribution needs a batch of at least 2 images, got 1.")
    with torch.autocast(embeddings.device.type, enabled=False):
        (embeddings,) = at_least_float32(embeddings)
        points, gaussian, weights = _quadrature(knots, limit, embeddings)
        phases = (embeddings @ directions.to(embeddings))[..., None] * points  # (N, M, knots)
        distance = (phases.cos().mean(0) - gaussian).square() + phases.sin().mean(0).square()
        return len(embeddings) * (distance @ (weights * gaussian)).mean()


def expected_sigreg(knots: int, limit: float) -> float:
    """Mean of SIGReg for N samples of N(0, I); the same for any N.

    E|φ̂(t) - φ(t)|² = (1 - φ(t)²) / N for independent samples, and SIGReg multiplies by N.
    """
    _, gaussian, weights = _quadrature(knots, limit, torch.zeros((), dtype=torch.float64))
    return float(weights @ (gaussian * (1 - gaussian.square())))


def collapsed_sigreg(knots: int, limit: float, images: int) -> float:
    """SIGReg of N embeddings that are all 0: φ̂ is 1 everywhere."""
    _, gaussian, weights = _quadrature(knots, limit, torch.zeros((), dtype=torch.float64))
    return images * float(weights @ (gaussian * (1 - gaussian).square()))


def _quadrature(knots: int, limit: float, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # Points t on [0, limit], φ(t) = exp(-t²/2), and weights that count twice, for the other half of
    # the interval.
    if knots < 2 or not 0 < limit < math.inf:
        raise ValueError(f"knots {knots}, limit {limit}: expected at least 2 points up to a t > 0.")
    points = torch.linspace(0, limit, knots, dtype=like.dtype, device=like.device)
    weights = torch.full_like(points, 2 * limit / (knots - 1))
    # Set one by one: a list of indices would have to be copied to the GPU, which waits for it.
    weights[0] /= 2
    weights[-1] /= 2
    return points, (-points.square() / 2).exp(), weights
