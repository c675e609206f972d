"""Mixed images and their term in Barlow Twins' loss."""

import pytest
import torch

from models.losses.barlow_twins import cross_correlation, mixed_loss
from models.mixing import Mixing


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sizes", [[5], [3, 2], [2, 2, 1]])
def test_images_are_mixed_over_the_whole_batch(sizes):
    first, second = torch.randint(0, 256, (2, 5, 3, 4, 4), generator=generator()).byte()
    mixing = Mixing.draw(5, generator(1))
    found = mixing.images(first.split(sizes), second.split(sizes))
    assert [len(chunk) for chunk in found] == sizes
    mixed = torch.cat(found)
    assert mixed.dtype == torch.uint8
    for image in range(5):
        a, b = first[image].double(), second[int(mixing.order[image])].double()
        exact = mixing.alpha * a + (1 - mixing.alpha) * b
        assert (mixed[image].double() - exact).abs().max() <= 0.501


def test_the_generator_determines_the_mixture_and_alpha_is_uniform():
    one, again = (Mixing.draw(7, generator(3)) for _ in range(2))
    assert one.alpha == again.alpha
    assert torch.equal(one.order, again.order)
    alphas = torch.tensor([Mixing.draw(2, generator(seed)).alpha for seed in range(2000)])
    assert 0 <= alphas.min() < 0.01 < 0.99 < alphas.max() <= 1
    assert alphas.mean() == pytest.approx(0.5, abs=0.03)
    assert alphas.var() == pytest.approx(1 / 12, abs=0.01)


def test_several_processes_mix_their_own_images():
    mixing = Mixing(0.5, torch.tensor([2, 0, 1]))
    assert mixing.over(2).tolist() == [2, 0, 1, 5, 3, 4]
    assert mixing.over(1).tolist() == [2, 0, 1]


def embeddings(n: int = 7, d: int = 4) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(3, n, d, generator=generator(), dtype=torch.float64))


def test_the_term_is_the_papers():
    mixed, z1, z2 = embeddings()
    alpha, order = 0.3, torch.randperm(7, generator=generator())
    total = 0.0
    for z in (z1, z2):
        found = cross_correlation(mixed, z)
        first, second = cross_correlation(z1, z), cross_correlation(z2[order], z)
        for i in range(4):
            for j in range(4):
                target = alpha * first[i, j] + (1 - alpha) * second[i, j]
                total += float(found[i, j] - target) ** 2
    assert mixed_loss(mixed, z1, z2, alpha, order).item() == pytest.approx(total, rel=1e-10)


def test_a_mixture_of_one_image_costs_nothing():
    _, z1, z2 = embeddings()
    order = torch.arange(7)
    assert mixed_loss(z1, z1, z2, 1.0, order).item() == pytest.approx(0, abs=1e-12)
    assert mixed_loss(z2, z1, z2, 0.0, order).item() == pytest.approx(0, abs=1e-12)


def test_gradient_is_right():
    tensors = tuple(z.requires_grad_() for z in embeddings(6, 3))
    order = torch.randperm(6, generator=generator())
    assert torch.autograd.gradcheck(lambda m, a, b: mixed_loss(m, a, b, 0.4, order), tensors)


def test_float32_inside_autocast():
    tensors = [z.float() for z in embeddings()]
    expected = mixed_loss(*tensors, 0.4, torch.arange(7))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mixed_loss(*tensors, 0.4, torch.arange(7)), expected)
