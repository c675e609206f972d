"""How much of a batch's gradient is noise, from the gradients of its two halves.

McCandlish et al. 2018, "An Empirical Model of Large-Batch Training" (arXiv 1812.06162), section 2
and appendix A: the gradient of M images is G, which all batches have in common, plus noise of
covariance Σ / M. Two halves are two such batches that have nothing but G in common.

For a loss that judges a whole batch (Barlow Twins, SIGReg) it is an approximation: G then depends
on M itself, and the noise need not fall like 1 / M.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class HalfGradients(NamedTuple):
    """What the gradients g1, g2 of two halves of a batch say.

    Attributes:
        cosine: between g1 and g2.
        signal: g1·g2, whose mean is |G|².
        noise: |g1 - g2|² / 2 times the images of a half, whose mean is tr Σ, that of one image. It
            is ((|g1|² + |g2|²) / 2 - g1·g2) times the images, without the cancellation.
    """

    cosine: float
    signal: float
    noise: float


class GradientNoise(NamedTuple):
    """Of the gradient of one image.

    Attributes:
        signal: |G|², not below 0.
        noise: tr Σ.
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


def compare(first: Tensor, second: Tensor, images: int) -> HalfGradients:
    """Compares the gradients of two halves of a batch.

    Args:
        first: g1, `(P,)`.
        second: g2, `(P,)`.
        images: of a half.
    """
    between = torch.dot(first, second)
    return HalfGradients(
        float(between / (first.norm() * second.norm())),
        float(between),
        float((first - second).square().sum()) / 2 * images,
    )


def estimate(measured: Sequence[HalfGradients]) -> GradientNoise:
    """Returns signal and noise, of products averaged over measurements.

    Averaged cosines would be biased: a ratio's mean is not the ratio of means.

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
