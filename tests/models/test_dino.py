"""Loss, centre, head, teacher and piecewise gradients against what the paper says."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.ema import teacher_of, update
from models.heads.dino import DINOHead
from models.losses.dino import (
    Center,
    dino_loss,
    entropies,
    entropy,
    pieces,
    teacher_targets,
    view_loss,
)
from models.memory.accumulation import sum_in_pieces


def naive_loss(student, teacher, center, student_temp, teacher_temp):
    """Algorithm 1 of the paper, one number at a time."""
    total, pairs = 0.0, 0
    for i, t in enumerate(teacher):
        for j, s in enumerate(student):
            if i == j:
                continue
            pairs += 1
            for row_t, row_s in zip(t.tolist(), s.tolist(), strict=True):
                p = [
                    math.exp((a - c) / teacher_temp)
                    for a, c in zip(row_t, center.tolist(), strict=True)
                ]
                q = [math.exp(b / student_temp) for b in row_s]
                total -= sum(
                    a / sum(p) * math.log(b / sum(q)) for a, b in zip(p, q, strict=True)
                ) / len(t)
    return total / pairs


@pytest.mark.parametrize("views", [2, 5])
def test_loss_is_that_of_the_paper(views):
    torch.manual_seed(0)
    student = [torch.randn(3, 7, dtype=torch.float64) for _ in range(views)]
    teacher = [torch.randn(3, 7, dtype=torch.float64) for _ in range(2)]
    center = torch.randn(7, dtype=torch.float64)
    targets = [teacher_targets(t, center, 0.04) for t in teacher]
    expected = naive_loss(student, teacher, center, 0.1, 0.04)
    assert float(dino_loss(student, targets, 0.1)) == pytest.approx(expected, rel=1e-12)


def test_pieces_of_unequal_micro_batches_make_up_the_loss():
    torch.manual_seed(0)
    student = [torch.randn(5, 7, dtype=torch.float64) for _ in range(4)]
    targets = [torch.rand(5, 7, dtype=torch.float64) for _ in range(2)]
    each = list(pieces([view.split([2, 3]) for view in student], targets))
    assert [len(chunk) for chunk, _ in each] == [2, 3] * 4
    total = sum(view_loss(chunk, against, 0.1) for chunk, against in each)
    torch.testing.assert_close(total / (2 * 3 * 5), dino_loss(student, targets, 0.1))


def test_loss_is_in_float32_under_autocast_and_targets_have_no_gradient():
    logits = torch.randn(4, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        targets = [teacher_targets(logits.bfloat16(), torch.zeros(1, 5), 0.04)] * 2
        loss = dino_loss([logits.bfloat16()] * 3, targets, 0.1)
    assert targets[0].dtype == loss.dtype == torch.float32
    assert not targets[0].requires_grad


def test_entropy_of_known_distributions():
    assert float(entropy(torch.full((8,), 1 / 8))) == pytest.approx(math.log(8))
    assert float(entropy(torch.eye(4)[0])) == 0


def test_entropies_of_targets_are_those_of_all_of_them_together():
    targets = [torch.randn(5, 9).softmax(-1) for _ in range(2)]
    together = torch.cat(targets)
    of_each, of_mean = entropies(targets)
    assert float(of_each) == pytest.approx(float(entropy(together).mean()))
    assert float(of_mean) == pytest.approx(float(entropy(together.mean(0))))


def test_center_moves_on_update_only_by_the_mean_of_all_that_was_collected():
    center = Center(3, momentum=0.9)
    first, second = torch.randn(4, 3), torch.randn(12, 3)
    center.collect(first)
    center.collect(second)
    assert torch.equal(center.value, torch.zeros(1, 3))  # used before it is moved
    center.update()
    mean = torch.cat([first, second]).mean(0, keepdim=True)
    torch.testing.assert_close(center.value, 0.1 * mean)
    center.update()  # nothing collected since
    torch.testing.assert_close(center.value, 0.1 * mean)
    assert "value" in center.state_dict()


@pytest.mark.parametrize("fixed", [True, False])
def test_head_has_prototypes_of_norm_one(fixed):
    head = DINOHead(6, 9, hidden_dim=8, bottleneck_dim=4, norm_last_layer=fixed)
    norms = head.last_layer.weight.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(9))
    logits = head(torch.randn(5, 6) * 100)
    assert logits.shape == (5, 9)
    assert logits.abs().max() <= 1 + 1e-6  # a cosine
    trained = {name for name, p in head.named_parameters() if p.requires_grad}
    assert ("last_layer.parametrizations.weight.original0" in trained) is not fixed
    linears = [m for m in head.mlp if isinstance(m, nn.Linear)]
    assert [m.out_features for m in linears] == [8, 8, 4]
    assert sum(isinstance(m, nn.GELU) for m in head.mlp) == 2


def test_head_with_batch_norm_is_the_same_layers_and_takes_out_what_all_images_share():
    torch.manual_seed(0)
    head = DINOHead(6, 9, hidden_dim=8, bottleneck_dim=4, batch_norm=True).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    first, second, third = [m for m in head.mlp if isinstance(m, nn.Linear)]
    hidden = x
    for linear in (first, second):
        hidden = hidden @ linear.weight.T
        hidden = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + 1e-5).sqrt()
        hidden = F.gelu(hidden)
    by_hand = F.normalize(hidden @ third.weight.T, dim=1) @ head.last_layer.weight.T
    torch.testing.assert_close(head(x), by_hand)
    torch.testing.assert_close(head(x + 100 * torch.randn(6)), by_hand)


def test_teacher_starts_equal_drops_nothing_and_follows():
    from models.backbones.vit import vit_tiny

    student = vit_tiny(image_size=32, depth=2, embed_dim=24, drop_path=0.5)
    teacher = teacher_of(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    images = torch.rand(16, 3, 32, 32)
    torch.testing.assert_close(student.eval()(images).pooled, teacher.train()(images).pooled)
    assert not torch.equal(student.train()(images).pooled, student(images).pooled)
    before = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn_like(p))
    update(teacher, student, 0.75)
    for now, then, goal in zip(teacher.parameters(), before, student.parameters(), strict=True):
        torch.testing.assert_close(now, 0.75 * then + 0.25 * goal.detach())


@pytest.mark.parametrize("precise", [True, False])
def test_pieces_have_the_gradient_of_the_sum(precise):
    torch.manual_seed(0)
    dtype = torch.float64 if precise else torch.float32
    net = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 3), nn.Linear(3, 1)).to(dtype)
    unused = nn.Parameter(torch.ones(2, dtype=dtype))
    parameters = [*net.parameters(), unused]
    data = torch.randn(4, 6, 5, dtype=dtype)

    def gradients(in_pieces, scale):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            pieces = [lambda part=part: net(part).float().square().mean() for part in data]
            if precise:
                pieces = [lambda part=part: net(part).square().mean() for part in data]
            total = (
                sum_in_pieces(pieces, parameters, scale) if in_pieces else sum(p() for p in pieces)
            )
        (7 * total).backward()
        return float(total.detach()), [p.grad.clone() for p in net.parameters()]

    tolerance = {"rtol": 1e-10, "atol": 1e-12} if precise else {"rtol": 0.05, "atol": 1e-2}
    whole, expected = gradients(False, 1.0)
    for scale in (1.0, 1024.0):
        pieces, found = gradients(True, scale)
        assert pieces == pytest.approx(whole, rel=1e-6)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, **tolerance)
    assert unused.grad is None


def test_pieces_of_parameters_that_share_a_gradient():
    # Autograd gives one tensor for both terms of a sum, and a sum's gradient has no memory.
    torch.manual_seed(0)
    first, second, third = (nn.Parameter(torch.randn(4, dtype=torch.float64)) for _ in range(3))
    parameters, data = [first, second, third], torch.randn(3, 4, dtype=torch.float64)
    pieces = [lambda x=x: ((first + second) * x).sin().sum() + third.sum() for x in data]
    expected = torch.autograd.grad(sum(piece() for piece in pieces), parameters)
    found = torch.autograd.grad(sum_in_pieces(pieces, parameters), parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_pieces_give_the_scaler_its_overflow():
    weight = nn.Parameter(torch.ones(2))
    total = sum_in_pieces([lambda: (weight * 1e30).sum()], [weight], scale=1e30)
    total.backward()
    assert torch.isinf(weight.grad).all()
    with pytest.raises(ValueError, match="no pieces"):
        sum_in_pieces([], [weight])
