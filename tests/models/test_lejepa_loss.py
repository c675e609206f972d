import math

import pytest
import torch

from models.losses.lejepa import (
    collapsed_sigreg,
    expected_sigreg,
    prediction_loss,
    random_directions,
    sigreg,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def naive(z: torch.Tensor, directions: torch.Tensor, limit: float, steps: int) -> float:
    """The integral by its midpoints over the whole interval, number by number."""
    n, width = len(z), 2 * limit / steps
    total = 0.0
    for direction in directions.T.tolist():
        x = [sum(a * b for a, b in zip(row, direction, strict=True)) for row in z.tolist()]
        for k in range(steps):
            t = -limit + (k + 0.5) * width
            phi = sum(complex(math.cos(t * each), math.sin(t * each)) for each in x) / n
            weight = math.exp(-(t**2) / 2)
            total += n * abs(phi - weight) ** 2 * weight * width
    return total / directions.shape[1]


@pytest.mark.parametrize(("n", "k", "m"), [(2, 3, 2), (7, 5, 3), (12, 2, 4)])
def test_equals_the_integral_in_float64(n, k, m):
    z, directions = 1.7 * gaussian(n, k) + 0.3, random_directions(k, m, generator()).double()
    expected = naive(z, directions, 3.0, 3000)
    assert sigreg(z, directions, 3001, 3.0).item() == pytest.approx(expected, rel=1e-6)
    assert sigreg(z, directions, 17, 3.0).item() == pytest.approx(expected, rel=2e-3)


def test_equals_the_closed_form_over_the_whole_line():
    # Pairs of images: ∫ cos(dt) w dt = √(2π) exp(-d²/2); an image and the Gaussian: √π exp(-x²/4).
    z, directions = 2 * gaussian(9, 4), random_directions(4, 5, generator()).double()
    x = z @ directions
    pairs = (-(x[:, None] - x[None]).square() / 2).exp().sum((0, 1)) * math.sqrt(2 * math.pi) / 9
    one = 2 * math.sqrt(math.pi) * (-x.square() / 4).exp().sum(0)
    expected = (pairs - one + 9 * math.sqrt(2 * math.pi / 3)).mean()
    torch.testing.assert_close(sigreg(z, directions, 400, 12.0), expected)


def test_gradient_is_right():
    z = gaussian(5, 3).requires_grad_()
    directions = random_directions(3, 4, generator()).double()
    assert torch.autograd.gradcheck(lambda a: sigreg(a, directions, 9, 3.0), (z,))
    views = gaussian(3, 4, 2).requires_grad_()
    assert torch.autograd.gradcheck(prediction_loss, (views,))


def test_gradient_of_the_plain_formula():
    z, directions = gaussian(6, 4), random_directions(4, 3, generator()).double()
    one, other = z.clone().requires_grad_(), z.clone().requires_grad_()
    sigreg(one, directions, 17, 3.0).backward()
    total = torch.zeros((), dtype=torch.float64)
    for direction in directions.T:
        for k in range(17):
            t = 3 * k / 16
            weight = 3 / 16 * (1 if k in (0, 16) else 2) * math.exp(-(t**2) / 2)
            phi = torch.exp(1j * t * (other @ direction)).mean()
            total = total + 6 * weight * (phi - math.exp(-(t**2) / 2)).abs() ** 2 / 3
    total.backward()
    torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("n", [16, 256])
def test_gaussian_samples_have_the_expected_value_at_any_batch_size(n):
    directions = random_directions(8, 32, generator()).double()
    found = [sigreg(gaussian(n, 8, seed=seed), directions, 17, 3.0) for seed in range(200)]
    excess = torch.stack(found) - expected_sigreg(17, 3.0)
    assert abs(float(excess.mean())) < 4 * float(excess.std()) / 200**0.5
    assert float(excess.std()) / 200**0.5 < 0.03
    assert expected_sigreg(17, 3.0) == pytest.approx(1.06, abs=0.01)


def test_what_is_not_gaussian_exceeds_it():
    directions, expected = random_directions(8, 32, generator()).double(), expected_sigreg(17, 3.0)
    z = gaussian(256, 8)
    for other in (3 * z, z + 1, z[:, :1].expand(-1, 8)):
        assert sigreg(other, directions, 17, 3.0) > 3 * expected
    nothing = torch.zeros(256, 8, dtype=torch.float64)
    assert sigreg(nothing, directions, 17, 3.0).item() == pytest.approx(
        collapsed_sigreg(17, 3.0, 256)
    )


def test_prediction_is_the_distance_from_the_mean_view():
    views = gaussian(3, 4, 2)
    total = 0.0
    for image in range(4):
        mean = [sum(views[v, image, k].item() for v in range(3)) / 3 for k in range(2)]
        total += sum((views[v, image, k].item() - mean[k]) ** 2 for v in range(3) for k in range(2))
    assert prediction_loss(views).item() == pytest.approx(total / (3 * 4 * 2))
    assert prediction_loss(views[:1].expand(3, -1, -1)).item() == pytest.approx(0)
    assert prediction_loss(gaussian(4, 500, 50)).item() == pytest.approx(1 - 1 / 4, rel=0.02)


def test_it_moves_points_towards_a_gaussian():
    z = (2 * gaussian(128, 4) + 1).requires_grad_()
    optimizer = torch.optim.Adam([z], 0.05)
    for step in range(500):
        optimizer.zero_grad()
        sigreg(z, random_directions(4, 16, generator(step)), 17, 3.0).backward()
        optimizer.step()
    points = z.detach()
    torch.testing.assert_close(points.mean(0), torch.zeros(4).double(), rtol=0, atol=0.15)
    torch.testing.assert_close(points.T.cov(), torch.eye(4).double(), rtol=0, atol=0.25)


def test_float32_inside_autocast():
    z, directions = gaussian(32, 8, dtype=torch.float32), random_directions(8, 4, generator())
    expected = sigreg(z, directions, 17, 3.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = sigreg(z, directions, 17, 3.0)
        assert prediction_loss(torch.stack([z, z]).bfloat16()).dtype == torch.float32
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert sigreg(z.bfloat16(), directions, 17, 3.0).dtype == torch.float32


def test_directions_are_unit_vectors_that_the_generator_determines():
    one, again = (random_directions(6, 50, generator(3)) for _ in range(2))
    assert torch.equal(one, again)
    torch.testing.assert_close(one.norm(dim=0), torch.ones(50))
    assert not torch.equal(one, random_directions(6, 50, generator(4)))


@pytest.mark.parametrize(
    ("z", "knots", "limit", "message"),
    [
        (torch.zeros(1, 4), 17, 3.0, "at least 2 images, got 1"),
        (torch.zeros(3, 5), 17, 3.0, r"directions \(K, M\), got \(3, 5\), \(4, 2\)"),
        (torch.zeros(3), 17, 3.0, "expected embeddings"),
        (torch.zeros(3, 4), 1, 3.0, "at least 2 points"),
        (torch.zeros(3, 4), 17, math.inf, "limit inf"),
    ],
)
def test_refuses_what_has_no_distribution(z, knots, limit, message):
    with pytest.raises(ValueError, match=message):
        sigreg(z, random_directions(4, 2, generator()), knots, limit)
