import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from models.heads.projector import projector
from models.losses.barlow_twins import (
    barlow_twins_loss,
    cross_correlation,
    lower_bound,
    noise_floor,
    summarise,
)
from models.losses.vicreg import vicreg_terms


def embeddings(n: int, d: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(n, d, generator=generator, dtype=dtype) for _ in range(2))


def naive(z1: torch.Tensor, z2: torch.Tensor, lambd: float) -> float:
    """Equations 1 and 2, element by element."""
    n, d = z1.shape

    def standardised(z: torch.Tensor, i: int) -> list[float]:
        column = z[:, i].tolist()
        mean = sum(column) / n
        deviation = (sum((x - mean) ** 2 for x in column) / n + 1e-5) ** 0.5
        return [(x - mean) / deviation for x in column]

    first, second = ([standardised(z, i) for i in range(d)] for z in (z1, z2))
    loss = 0.0
    for i in range(d):
        for j in range(d):
            c = sum(a * b for a, b in zip(first[i], second[j], strict=True)) / n
            loss += (1 - c) ** 2 if i == j else lambd * c**2
    return loss


@pytest.mark.parametrize(("n", "d"), [(2, 3), (7, 5), (16, 4)])
def test_equals_naive_reference_in_float64(n, d):
    z1, z2 = embeddings(n, d)
    loss = barlow_twins_loss(cross_correlation(z1, z2), 0.0051)
    assert loss.item() == pytest.approx(naive(z1, z2, 0.0051), rel=1e-12)


def test_perfect_agreement_has_a_unit_diagonal_at_any_batch_size():
    # The unbiased deviation would give (N-1)/N: 0.75 here.
    z, _ = embeddings(4, 8)
    diagonal = cross_correlation(z * 1e3, z * 1e3).diagonal()
    torch.testing.assert_close(diagonal, torch.ones_like(diagonal), rtol=0, atol=1e-8)


def test_gradient_is_right():
    z1, z2 = (z.requires_grad_() for z in embeddings(6, 4))
    assert torch.autograd.gradcheck(
        lambda a, b: barlow_twins_loss(cross_correlation(a, b), 0.1), (z1, z2)
    )


def test_the_matrix_is_not_changed_by_the_loss():
    correlation = cross_correlation(*embeddings(6, 4))
    before = correlation.clone()
    barlow_twins_loss(correlation, 0.1)
    assert torch.equal(correlation, before)


def test_float32_inside_autocast():
    z1, z2 = embeddings(64, 32, torch.float32)
    expected = barlow_twins_loss(cross_correlation(z1, z2), 0.0051)
    with torch.autocast("cpu", torch.bfloat16):
        correlation = cross_correlation(z1, z2)
        loss = barlow_twins_loss(correlation, 0.0051)
    assert correlation.dtype == loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def test_a_constant_dimension_gives_no_nan():
    z1, z2 = embeddings(8, 4, torch.float32)
    z1[:, 0] = 3.0
    assert torch.isfinite(barlow_twins_loss(cross_correlation(z1, z2), 0.0051))


@pytest.mark.parametrize("shapes", [((1, 4), (1, 4)), ((4, 4), (4, 5)), ((4,), (4,))])
def test_refuses_what_has_no_correlation(shapes):
    with pytest.raises(ValueError, match=r"batch of at least 2|expected two"):
        cross_correlation(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize(("dim", "batch"), [(64, 16), (128, 64), (64, 256)])
def test_the_noise_floor_is_what_independent_features_cost(dim, batch):
    torch.manual_seed(0)
    losses = []
    for _ in range(40):
        z = torch.randn(batch, dim, dtype=torch.float64)
        losses.append(barlow_twins_loss(cross_correlation(z, z), 0.0051).item())
    assert sum(losses) / 40 == pytest.approx(noise_floor(dim, batch, 0.0051), rel=0.02)


def test_published_noise_floors():
    # Tabulated for Gaussian features: D = 512 at N = 32, D = 2048 at N = 256.
    assert noise_floor(512, 32, 0.0051) == pytest.approx(43.0, abs=0.1)
    assert noise_floor(2048, 256, 0.0051) == pytest.approx(83.9, abs=0.1)


def test_the_lower_bound_is_reached_by_optimised_equal_views_and_not_beaten():
    torch.manual_seed(0)
    dim, batch, lambd = 12, 6, 0.05
    z = torch.randn(batch, dim, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([z], max_iter=2000, line_search_fn="strong_wolfe")

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        correlation = cross_correlation(z, z, eps=1e-12)
        loss = barlow_twins_loss(correlation, lambd)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(step)
    bound = lower_bound(dim, batch, lambd)
    assert step().item() == pytest.approx(bound, rel=1e-3)
    assert step().item() >= bound * (1 - 1e-9)
    assert lower_bound(dim, dim + 1, lambd) == 0


def test_summary_of_agreement_and_redundancy():
    matrix = torch.tensor([[1.0, 0.3, 0.0], [-0.3, 0.5, 0.0], [0.0, 0.0, 0.0]])
    summary = summarise(matrix)
    assert summary.diagonal_mean == pytest.approx(0.5)
    assert summary.off_diagonal_rms == pytest.approx((0.18 / 6) ** 0.5)


def test_projector_is_the_papers():
    layers = [type(layer) for layer in projector(24, 512, 3)]
    assert layers == [
        nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear,
    ]  # fmt: skip
    sizes = [tuple(p.shape) for p in projector(24, 512, 3).parameters() if p.ndim == 2]
    assert sizes == [(512, 24), (512, 512), (512, 512)]
    assert [tuple(p.shape) for p in projector(24, 8, 1).parameters()] == [(8, 24)]


@pytest.mark.parametrize("dim", [2, 5, 300])
def test_a_nearly_perfect_matrix_is_summarised_to_the_last_digits(dim):
    """The diagonal's squares are 1e8 times the others': a difference of sums would be noise."""
    generator = torch.Generator().manual_seed(0)
    noise = 1e-4 * torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    exact = noise - noise.diagonal().diag() + torch.eye(dim, dtype=torch.float64)
    off = exact[~torch.eye(dim, dtype=torch.bool)]
    found = summarise(exact.float())
    assert found.off_diagonal_rms.item() == pytest.approx(
        float(off.square().mean().sqrt()), rel=1e-5
    )
    assert found.diagonal_mean.item() == 1


def test_no_number_is_waited_for():
    """Nothing whose shape depends on values, for which a GPU would have to be asked."""
    with FakeTensorMode():
        matrix = torch.empty(8, 8)
        summarise(matrix)
        barlow_twins_loss(matrix, 0.1)
        vicreg_terms(matrix, matrix)
