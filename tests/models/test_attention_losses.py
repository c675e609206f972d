"""What each term on attention wants, and that void pixels want nothing."""

import math

import pytest
import torch
from torch import Tensor

from models.attention import Attention
from models.attention_supervision import attention_loss
from models.backbones.base import Features
from models.fusions.attention_fusion import Looks
from models.losses.attention import (
    affinity_loss,
    diversity_loss,
    head_information,
    mass_loss,
    matched_heads,
    patch_shares,
    shape_loss,
)

VOID = 255


def scene() -> Tensor:
    """8 x 8 pixels, four patches of 4 x 4: background, class 2, class 1 and half void, all void."""
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    labels[0, :4, 4:] = 2
    labels[0, 4:, :4] = 1
    labels[0, 4:6, :4] = VOID
    labels[0, 4:, 4:] = VOID
    return labels


def test_shares_leave_void_out():
    shares, valid = patch_shares(scene(), (2, 2), 3)
    assert valid.tolist() == [[True, True, True, False]]
    assert shares[0].T.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]]
    # Patches that do not divide the image, against counting.
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (2, 12, 18), generator=generator).byte()
    labels[labels == 3] = VOID
    shares, valid = patch_shares(labels, (3, 3), 3)
    for row in range(3):
        for column in range(3):
            patch = labels[1, 4 * row : 4 * row + 4, 6 * column : 6 * column + 6]
            count = (patch != VOID).sum()
            for label in range(3):
                expected = float((patch == label).sum() / count)
                assert float(shares[1, label, 3 * row + column]) == pytest.approx(expected)
    assert valid.all()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 4, (2, 8, 8), generator=generator).byte()
    labels[0][labels[0] == 3] = VOID
    shares, valid = patch_shares(labels, (4, 4), 4)
    maps = torch.rand(2, 3, 16, generator=generator)
    return maps, shares.double(), valid


def test_mass_is_that_of_a_plain_reference():
    maps, shares, valid = inputs()
    costs = []
    for image in range(2):
        for label in range(1, 4):
            if shares[image, label].sum() == 0:
                continue
            each = []
            for h in range(3):
                a = maps[image, h].double() * valid[image]
                inside = sum(
                    float(a[i]) / float(a.sum()) * float(shares[image, label, i]) for i in range(16)
                )
                each.append(-math.log(inside))
            weights = [math.exp(-c / 0.1) for c in each]
            costs.append(sum(w * c for w, c in zip(weights, each, strict=True)) / sum(weights))
    found = mass_loss(maps.double(), shares[:, 1:], valid)
    assert float(found) == pytest.approx(sum(costs) / len(costs), rel=1e-6)


def test_the_choice_of_a_head_is_no_way_to_lower_the_mass_loss():
    maps, shares, valid = inputs()
    maps = maps.double().requires_grad_()
    cost, weights, present = matched_heads(maps, shares[:, 1:], valid)
    chosen = (cost * weights.detach()).sum(-1)[present].mean()
    (expected,) = torch.autograd.grad(chosen, maps)
    (found,) = torch.autograd.grad(mass_loss(maps, shares[:, 1:], valid), maps)
    torch.testing.assert_close(found, expected)


def test_shape_is_that_of_a_plain_reference():
    maps, _, _ = inputs()
    labels = torch.randint(0, 4, (2, 8, 8), generator=torch.Generator().manual_seed(2)).byte()
    labels[0, :4] = VOID  # half of the patches: what is uniform is uniform over the others
    shares, valid = patch_shares(labels, (4, 4), 4)
    costs = []
    for image in range(2):
        seen = [i for i in range(16) if valid[image, i]]
        for label in range(1, 4):
            object_ = [float(shares[image, label, i]) for i in seen]
            masses, unlike = [], []
            for h in range(3):
                total = sum(float(maps[image, h, i]) for i in seen)
                attention = [float(maps[image, h, i]) / total for i in seen]
                masses.append(sum(a * o for a, o in zip(attention, object_, strict=True)))
                # sigmoid(4 log x) for x times the uniform attention
                above = [1 / (1 + (a * len(seen)) ** -4) for a in attention]
                both = sum(a * o for a, o in zip(above, object_, strict=True))
                unlike.append(1 - both / (sum(above) + sum(object_) - both))
            weights = [mass**10 for mass in masses]  # exp(log(mass) / 0.1)
            costs.append(sum(w * u for w, u in zip(weights, unlike, strict=True)) / sum(weights))
    found = shape_loss(maps.double(), shares[:, 1:].double(), valid)
    assert float(found) == pytest.approx(sum(costs) / len(costs), rel=1e-4)


def test_mass_is_zero_when_some_head_looks_at_each_object_alone():
    shares, valid = patch_shares(scene(), (2, 2), 3)
    maps = torch.tensor([[[0.0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1]]])
    assert float(mass_loss(maps, shares[:, 1:], valid)) == pytest.approx(0, abs=1e-4)
    # Attention on void is as if it were not there.
    maps[..., 3] = 5
    assert float(mass_loss(maps, shares[:, 1:], valid)) == pytest.approx(0, abs=1e-4)
    everywhere = torch.ones(1, 3, 4)
    assert float(mass_loss(everywhere, shares[:, 1:], valid)) == pytest.approx(
        math.log(3), abs=1e-5
    )
    cost, weights, present = matched_heads(everywhere, shares[:, 1:], valid)
    assert present.all()
    assert weights.sum(-1).allclose(torch.ones(1, 2))
    assert cost.shape == (1, 2, 3)


def test_an_image_of_background_wants_nothing():
    shares, valid = patch_shares(torch.zeros(1, 4, 4, dtype=torch.uint8), (2, 2), 3)
    maps = torch.rand(1, 2, 4, requires_grad=True)
    for loss in (mass_loss, shape_loss):
        value = loss(maps, shares[:, 1:], valid)
        assert float(value) == 0
    shares, valid = patch_shares(torch.full((1, 4, 4), VOID, dtype=torch.uint8), (2, 2), 3)
    for value in (
        mass_loss(maps, shares[:, 1:], valid),
        shape_loss(maps, shares[:, 1:], valid),
        affinity_loss(torch.full((1, 4, 4), 0.25), shares, valid),
    ):
        assert float(value) == 0


def test_shape_prefers_the_object_to_a_spike():
    labels = torch.zeros(1, 16, 16, dtype=torch.uint8)
    labels[0, :8, :8] = 1
    shares, valid = patch_shares(labels, (8, 8), 2)
    spike, whole = torch.full((1, 1, 64), 1e-4), torch.full((1, 1, 64), 1e-4)
    spike[0, 0, 9] = 1
    whole[0, 0, shares[0, 1] == 1] = 1 / 16
    assert float(mass_loss(spike, shares[:, 1:], valid)) == pytest.approx(
        float(mass_loss(whole, shares[:, 1:], valid)), abs=0.02
    )
    assert float(shape_loss(whole, shares[:, 1:], valid)) < 0.02
    assert float(shape_loss(spike, shares[:, 1:], valid)) > 0.9


def test_diversity_is_the_mean_cosine_of_pairs():
    maps = torch.eye(4)[None, :3]
    assert float(diversity_loss(maps)) == pytest.approx(0, abs=1e-6)
    assert float(diversity_loss(maps[:, :1].expand(1, 3, 4))) == pytest.approx(1)
    assert float(diversity_loss(maps[:, :1])) == 0
    random = torch.rand(2, 3, 5)
    cosines = [
        torch.cosine_similarity(random[b, i], random[b, j], 0)
        for b in range(2)
        for i in range(3)
        for j in range(3)
        if i != j
    ]
    assert float(diversity_loss(random)) == pytest.approx(float(torch.stack(cosines).mean()))


def test_affinity_counts_edges_inside_classes():
    shares, valid = patch_shares(scene(), (2, 2), 3)
    inside = torch.eye(4)[None]
    assert float(affinity_loss(inside, shares, valid)) == pytest.approx(0, abs=1e-4)
    everywhere = torch.full((1, 4, 4), 0.25)
    # Edges to the void patch do not count: one of three is one's own class.
    assert float(affinity_loss(everywhere, shares, valid)) == pytest.approx(math.log(3), abs=1e-5)
    # A large class weighs as much as a small one.
    labels = torch.zeros(1, 4, 16, dtype=torch.uint8)
    labels[0, :, :4] = 1
    shares, valid = patch_shares(labels, (1, 4), 2)
    edges = torch.full((1, 4, 4), 0.25)
    expected = (math.log(4) + math.log(4 / 3)) / 2
    assert float(affinity_loss(edges, shares, valid)) == pytest.approx(expected, abs=1e-5)


def test_affinity_of_patches_of_several_classes_is_never_below_zero():
    """The best edges lead to patches of nothing but one's largest class, and cost nothing."""
    generator = torch.Generator().manual_seed(0)
    pure = torch.eye(3)
    mixed = torch.rand(5, 3, generator=generator).softmax(1)
    shares = torch.cat([pure, mixed]).T[None]
    valid = torch.ones(1, 8, dtype=torch.bool)
    best = torch.zeros(1, 8, 8)
    best[0, torch.arange(8), shares[0].argmax(0)] = 1
    assert float(affinity_loss(best, shares, valid)) == pytest.approx(0, abs=1e-6)
    for _ in range(50):
        edges = (5 * torch.rand(1, 8, 8, generator=generator)).softmax(-1)
        assert float(affinity_loss(edges, shares, valid)) > 0


def test_labels_under_void_change_no_gradient():
    maps, _, _ = inputs()
    labels = torch.randint(0, 4, (2, 8, 8)).byte()
    labels[:, :3] = VOID
    maps = maps.requires_grad_()

    def gradient(moved: Tensor) -> Tensor:
        shares, valid = patch_shares(labels, (4, 4), 4)
        total = mass_loss(moved, shares[:, 1:], valid) + shape_loss(moved, shares[:, 1:], valid)
        return torch.autograd.grad(total, moved)[0]

    first = gradient(maps)
    assert first[:, :, :4].abs().max() == 0  # the first row of patches is void
    assert first[:, :, 8:].abs().max() > 0
    changed = maps.detach().clone()
    changed[:, :, :4] *= 7
    torch.testing.assert_close(gradient(changed.requires_grad_())[:, :, 4:], first[:, :, 4:])


def test_head_information():
    apart = torch.eye(4)[None]
    alike = torch.rand(1, 1, 6).expand(1, 3, 6)
    assert float(head_information(apart)) == pytest.approx(1)
    assert float(head_information(alike)) == pytest.approx(0, abs=1e-6)
    maps = torch.rand(2, 3, 5)
    for image, found in zip(maps, head_information(maps), strict=True):
        p = image / image.sum(-1, keepdim=True)
        joint = p / 3
        expected = sum(
            float(joint[h, i]) * math.log(float(joint[h, i]) / (float(joint[:, i].sum()) / 3))
            for h in range(3)
            for i in range(5)
        )
        assert float(found) == pytest.approx(expected / math.log(3), abs=1e-6)
    torch.testing.assert_close(head_information(maps), head_information(maps[:, [2, 0, 1]]))
    # Attention on CLS is no patch.
    torch.testing.assert_close(head_information(0.3 * maps), head_information(maps))


def test_without_a_background_the_first_class_is_an_object():
    maps = torch.rand(1, 1, 3, 4, 4)
    rows = maps.flatten(-2)
    factors = Attention(0, rows.transpose(1, 2), (4, 4), 0)
    given = Features(torch.zeros(1, 2), (), (), (), attention=(factors,))
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    labels[:, :4] = 1

    def mass(classes: tuple[str, ...]) -> float:
        found = attention_loss(given, Looks(), labels, classes, ["mass"], True)
        return float(found["mass"])

    shares, valid = patch_shares(labels, (4, 4), 2)
    with_background = float(mass_loss(rows[:, 0], shares[:, 1:], valid))
    assert mass(("background", "cat")) == pytest.approx(with_background)
    assert mass(("person", "cat")) == pytest.approx(float(mass_loss(rows[:, 0], shares, valid)))
    assert mass(("person", "cat")) != pytest.approx(with_background)


def test_what_a_class_looks_at_is_compared_with_that_class_alone():
    labels = scene()  # 1 and 2 fill a patch each
    maps = torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    given = Features(torch.zeros(1, 2), (), (), ())
    classes = ("background", "cat", "dog")
    found = attention_loss(given, Looks([maps]), labels, classes, ["mass"], False)
    cat, dog = maps[0, 1].flatten(), maps[0, 2].flatten()
    # Of the three patches that are not void, 1 is the dog's and 2 the cat's.
    expected = -(math.log(cat[2] / cat[:3].sum()) + math.log(dog[1] / dog[:3].sum())) / 2
    assert float(found["mass"]) == pytest.approx(expected, rel=1e-5)
