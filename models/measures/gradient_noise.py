"""How much of a batch's gradient is noise, from the gradients of two batches.

McCandlish et al. 2018, "An Empirical Model of Large-Batch Training" (arXiv 1812.06162), section 2
and appendix A: the gradient of M images is G, which all batches have in common, plus noise of
covariance Σ / M. Two batches have nothing but G in common.

Gradients may shrink by orders of magnitude within a few steps, and sums would be those of the
largest. Every measurement is therefore divided by the squared norm of a batch's gradient,
Q = (|g1|² + |g2|²) / 2, whose mean is |G|² + tr Σ / m for m images. What is averaged are shares: of
the signal, r = g1·g2 / Q, and of the noise, |g1 - g2|² / 2Q = 1 - r, which m makes that of one
image. Their ratio is that of the products. Q is measured as well, so that shares are off by about
its relative variance: a few per cent for batches of 16 images, less for more.

For a loss that judges a whole batch (Barlow Twins, SIGReg) it is an approximation: G then depends
on M itself, and the noise need not fall like 1 / M. Measured, larger batches mostly agree more than
it foretells (benchmarks/RESULTS.md, section 16).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class GradientPair(NamedTuple):
    """What the gradients g1, g2 of two batches say.

    Attributes:
        cosine: between g1 and g2.
        signal: g1·g2 / Q, an estimate of |G|² / Q; of no dimension, -1 … 1.
        noise: |g1 - g2|² / 2Q times the images of a batch, an estimate of tr Σ / Q, that of one
            image. It is (Q - g1·g2) / Q times the images, without the cancellation.
    """

    cosine: float
    signal: float
    noise: float


class GradientNoise(NamedTuple):
    """Of the gradient of one image, in units of the squared norm of a batch's.

    Attributes:
        signal: |G|² / Q, not below 0.
        noise: tr Σ / Q.
        error: standard error of the signal; infinite of a single measurement.
    """

    signal: float
    noise: float
    error: float = math.inf

    @property
    def scale(self) -> float:
        """The simple noise scale tr Σ / |G|² in images: in a batch of so many, noise is half.

        Infinite where nothing in common was found.
        """
        return self.noise / self.signal if self.signal else math.inf

    def cosine(self, images: float) -> float:
        """Returns the cosine expected between the gradients of two batches of so many images."""
        return _cosine(self.signal, self.noise / images)

    def cosine_range(self, images: float) -> tuple[float, float]:
        """Returns what that is two standard errors of the signal below and above."""
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
    """Returns signal and noise, averaged over measurements, each of which counts alike.

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
