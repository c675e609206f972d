"""How much of a batch's gradient is noise, from the gradients of two batches.

McCandlish et al. 2018, "An Empirical Model of Large-Batch Training" (arXiv 1812.06162), section 2
and appendix A: the gradient of M images is G, which is common to all batches, plus noise of
covariance Σ / M. Two batches have only G in common.

Gradients may shrink by orders of magnitude within a few steps, so that the largest would dominate a
sum. Every measurement is therefore divided by the squared norm of a batch's gradient,
Q = (|g1|² + |g2|²) / 2, whose mean is |G|² + tr Σ / m for m images. Two shares are averaged: that
of the signal, r = g1·g2 / Q, and that of the noise, |g1 - g2|² / 2Q = 1 - r, which times m is the
noise of one image. Dividing by Q keeps their ratio. Q itself is noisy, so the shares are off by
about its relative variance: a few per cent for batches of 16 images, less for larger ones.

For a loss on a whole batch (Barlow Twins, SIGReg) this is an approximation: G then depends on M,
and the noise need not fall like 1 / M. In measurements, larger batches mostly agree more than it
predicts (benchmarks/RESULTS.md, section 16).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class GradientPair(NamedTuple):
    """A comparison of the gradients g1, g2 of two batches.

    Attributes:
        cosine: between g1 and g2.
        signal: g1·g2 / Q, an estimate of |G|² / Q; dimensionless, -1 … 1.
        noise: |g1 - g2|² / 2Q times the images of a batch, an estimate of tr Σ / Q, the noise of
            one image. Equals (Q - g1·g2) / Q times the images, but without cancellation.
    """

    cosine: float
    signal: float
    noise: float


class GradientNoise(NamedTuple):
    """Signal and noise of one image's gradient, in units of a batch's squared gradient norm.

    Attributes:
        signal: |G|² / Q, not below 0.
        noise: tr Σ / Q.
        error: standard error of the signal; infinite for a single measurement.
    """

    signal: float
    noise: float
    error: float = math.inf

    @property
    def scale(self) -> float:
        """The simple noise scale tr Σ / |G|²: the batch size at which noise is half of Q.

        Infinite if there is no signal.
        """
        return self.noise / self.signal if self.signal else math.inf

    def cosine(self, images: float) -> float:
        """Returns the cosine expected between the gradients of two batches of so many images."""
        return _cosine(self.signal, self.noise / images)

    def cosine_range(self, images: float) -> tuple[float, float]:
        """Returns that cosine for a signal two standard errors below and above."""
        if math.isinf(self.error):
            return 0.0, 1.0
        low, high = (max(0.0, self.signal + sign * 2 * self.error) for sign in (-1, 1))
        return _cosine(low, self.noise / images), _cosine(high, self.noise / images)


def _cosine(signal: float, noise: float) -> float:
    total = signal + noise
    return signal / total if total else 0.0


def compare(first: Tensor, second: Tensor, images: int) -> GradientPair:
    """Compares the gradients of two batches.

    Args:
        first: g1, `(P,)`.
        second: g2, `(P,)`.
        images: of each.
    """
    between, norms = torch.dot(first, second), (first.norm(), second.norm())
    square = (norms[0].square() + norms[1].square()) / 2
    return GradientPair(
        float(between / (norms[0] * norms[1])),
        float(between / square),
        float((first - second).square().sum() / square) / 2 * images,
    )


def estimate(measured: Sequence[GradientPair]) -> GradientNoise:
    """Returns signal and noise, averaged over measurements with equal weights.

    Raises:
        ValueError: nothing was measured.
    """
    if not measured:
        raise ValueError("No gradients were compared.")
    signals = [each.signal for each in measured]
    count = len(signals)
    error = statistics.stdev(signals) / math.sqrt(count) if count > 1 else math.inf
    noise = statistics.fmean(each.noise for each in measured)
    return GradientNoise(max(0.0, statistics.fmean(signals)), noise, error)
