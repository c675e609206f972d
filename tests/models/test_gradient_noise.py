"""Signal and noise of gradients against a naive loop, and against a model whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from models.measures.gradient_noise import GradientNoise, GradientPair, compare, estimate

WIDTH, NOISE = 300, 0.7


def linear_gradient(distance: torch.Tensor, images: int) -> torch.Tensor:
    """Gradient of a linear regression's mean squared error / 2, `distance` from its solution."""
    x = torch.randn(images, WIDTH, dtype=torch.float64)
    residual = x @ distance - NOISE * torch.randn(images, dtype=torch.float64)
    return (residual[:, None] * x).mean(0)


def cosine_of_batches(distance: torch.Tensor, images: int, times: int) -> float:
    pairs = [(linear_gradient(distance, images), linear_gradient(distance, images))]
    pairs += [
        (linear_gradient(distance, images), linear_gradient(distance, images)) for _ in range(times)
    ]
    between = sum(float(a @ b) for a, b in pairs)
    return between / sum(float(a @ a + b @ b) / 2 for a, b in pairs)


def test_it_is_what_a_naive_loop_finds():
    torch.manual_seed(0)
    pairs = [(torch.randn(7, dtype=torch.float64) + 1, torch.randn(7, dtype=torch.float64) + 1)]
    pairs += [(2 * a + 0.1, b - 0.3) for a, b in pairs]
    found = [compare(a, b, images=12) for a, b in pairs]
    signal = noise = 0.0
    for (a, b), each in zip(pairs, found, strict=True):
        between = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
        squares = [sum(float(x) ** 2 for x in g) for g in (a, b)]
        assert each.cosine == pytest.approx(between / math.sqrt(squares[0] * squares[1]))
        signal += between / (sum(squares) / 2) / len(pairs)
        noise += (1 - between / (sum(squares) / 2)) * 12 / len(pairs)
    estimated = estimate(found)
    assert estimated[:2] == (pytest.approx(signal), pytest.approx(noise))
    deviation = torch.tensor([each.signal for each in found]).double().std()
    assert estimated.error == pytest.approx(float(deviation) / math.sqrt(len(found)))
    assert estimated.cosine(24) == pytest.approx(signal / (signal + noise / 24))
    assert estimated.cosine(estimated.scale) == pytest.approx(0.5)


def test_a_linear_model_has_the_signal_and_noise_it_is_known_to_have():
    torch.manual_seed(0)
    distance = 0.3 * torch.randn(WIDTH, dtype=torch.float64)
    half, times = 64, 1500
    found = estimate(
        [
            compare(linear_gradient(distance, half), linear_gradient(distance, half), half)
            for _ in range(times)
        ]
    )
    square = float(distance @ distance)
    # x ~ N(0, I): G = d, and Σ = (|d|² + σ²) I + d dᵀ.
    trace = WIDTH * (square + NOISE**2) + square
    whole = square + trace / half
    assert found.signal == pytest.approx(square / whole, rel=0.04)
    assert found.noise == pytest.approx(trace / whole, rel=0.02)
    assert found.scale == pytest.approx(trace / square, rel=0.05)
    for images in (half, 2 * half, 4 * half):
        measured = cosine_of_batches(distance, images, 100)
        assert found.cosine(images) == pytest.approx(measured, abs=0.03)
        assert found.cosine(images) == pytest.approx(square / (square + trace / images), abs=0.02)


def test_the_range_holds_the_truth_about_as_often_as_two_standard_errors_should():
    torch.manual_seed(0)
    distance = 0.3 * torch.randn(WIDTH, dtype=torch.float64)
    square = float(distance @ distance)
    truth = square / (square + (WIDTH * (square + NOISE**2) + square) / 32)
    inside = 0
    for _ in range(200):
        pairs = [(linear_gradient(distance, 16), linear_gradient(distance, 16)) for _ in range(20)]
        low, high = estimate([compare(a, b, 16) for a, b in pairs]).cosine_range(32)
        inside += low <= truth <= high
    assert 0.88 <= inside / 200 <= 0.99


def pair(size: float, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of a norm of `size`, of whose square `share` is common."""
    common, *noise = torch.randn(3, 10_000, dtype=torch.float64) / 100
    first, second = (share**0.5 * common + (1 - share) ** 0.5 * own for own in noise)
    return size * first, size * second


def test_a_measurement_counts_alike_however_large_its_gradients():
    torch.manual_seed(0)
    sizes = torch.logspace(0, -1.5, 20, dtype=torch.float64)  # 30-fold
    pairs = [pair(1, 0.3) for _ in sizes]
    shrunk = [(900 * size * a, 900 * size * b) for size, (a, b) in zip(sizes, pairs, strict=True)]
    found, expected = (estimate([compare(a, b, 8) for a, b in each]) for each in (shrunk, pairs))
    assert found == tuple(map(pytest.approx, expected))
    assert found.cosine(8) == pytest.approx(0.3, abs=0.02)


def test_a_large_gradient_at_the_start_does_not_speak_for_the_rest():
    torch.manual_seed(0)
    pairs = [pair(900, 0.4), *(pair(30, 0.03) for _ in range(19))]
    found = estimate([compare(*each, 8) for each in pairs])
    assert found.cosine(8) == pytest.approx((0.4 + 19 * 0.03) / 20, abs=0.01)
    # 0.03 / (0.03 + 0.97 / 4): what batches four times as large of the later steps would have
    assert found.cosine(32) == pytest.approx(0.11, abs=0.06)


def test_nothing_in_common_and_nothing_at_all():
    opposed = estimate([GradientPair(-1.0, -2.0, 4.0)])
    assert opposed == GradientNoise(0.0, 4.0, math.inf)
    assert opposed.cosine_range(4) == (0.0, 1.0)
    assert opposed.cosine(10**9) == 0
    assert opposed.scale == math.inf
    assert GradientNoise(0.0, 0.0).cosine(4) == 0
    assert GradientNoise(1.0, 0.0).cosine(4) == 1
    with pytest.raises(ValueError, match="No gradients"):
        estimate([])
