import pytest
import torch

from models.losses.vicreg import vicreg_terms


def embeddings(n: int, d: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(0.7 * torch.randn(n, d, generator=generator, dtype=dtype) for _ in range(2))


def naive(z1: torch.Tensor, z2: torch.Tensor) -> tuple[float, float, float]:
    """Section 4, element by element."""
    n, d = z1.shape
    invariance = sum((a - b) ** 2 for a, b in zip(z1.ravel(), z2.ravel(), strict=True)) / (n * d)
    variance = covariance = 0.0
    for z in (z1.tolist(), z2.tolist()):
        means = [sum(row[i] for row in z) / n for i in range(d)]
        for i in range(d):
            for j in range(d):
                c = sum((row[i] - means[i]) * (row[j] - means[j]) for row in z) / (n - 1)
                if i == j:
                    variance += max(0.0, 1 - (c + 1e-4) ** 0.5) / d / 2
                else:
                    covariance += c**2 / d
    return float(invariance), variance, covariance


@pytest.mark.parametrize(("n", "d"), [(2, 3), (7, 5), (16, 4)])
def test_equals_naive_reference_in_float64(n, d):
    z1, z2 = embeddings(n, d)
    found = [float(term) for term in vicreg_terms(z1, z2)]
    assert found == pytest.approx(naive(z1, z2), rel=1e-10)


def test_gradient_is_right():
    z1, z2 = (z.requires_grad_() for z in embeddings(6, 4))
    assert torch.autograd.gradcheck(lambda a, b: torch.stack(vicreg_terms(a, b)), (z1, z2))


def test_what_the_terms_are_for():
    torch.manual_seed(0)
    z, other = torch.randn(2, 4000, 8, dtype=torch.float64)
    good, apart = vicreg_terms(z, z), vicreg_terms(z, other)
    assert good.invariance == 0
    assert good.variance < 0.02
    assert good.covariance == pytest.approx(2 * 7 / 3999, rel=0.4)
    assert apart.invariance == pytest.approx(2, rel=0.05)
    assert vicreg_terms(3 * z, 3 * z).variance == 0  # more than 1 is no fault
    nothing = torch.zeros(8, 4)
    assert vicreg_terms(nothing, nothing).variance == pytest.approx(0.99)


def test_float32_inside_autocast():
    z1, z2 = embeddings(64, 32, torch.float32)
    expected = vicreg_terms(z1, z2)
    with torch.autocast("cpu", torch.bfloat16):
        found = vicreg_terms(z1, z2)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


@pytest.mark.parametrize("shapes", [((1, 4), (1, 4)), ((4, 4), (4, 5)), ((4,), (4,))])
def test_refuses_what_has_no_variance(shapes):
    with pytest.raises(ValueError, match=r"batch of at least 2|expected two"):
        vicreg_terms(*(torch.zeros(shape) for shape in shapes))
