"""Void counts for nothing, in any loss; the values are those of the definitions."""

import pytest
import torch
from torch import Tensor

from config.names import LOSSES
from models.losses.segmentation import (
    SegmentationLoss,
    WeightedCrossEntropy,
    cross_entropy,
    dice,
    focal,
    inverse_frequency,
    jaccard,
)
from utils.imports import load

VOID = 255


def case(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 5, 6, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 4, (2, 5, 6), generator=generator)
    labels[0, :2] = VOID
    labels[1, :, 3] = VOID
    return logits, labels


def value_and_gradient(loss, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    value = loss(logits, labels)
    value.backward()
    assert logits.grad is not None
    return value.detach(), logits.grad


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_what_lies_under_void_changes_neither_loss_nor_gradient(name):
    loss = SegmentationLoss([load(LOSSES[name])], [1.0])
    logits, labels = case()
    value, gradient = value_and_gradient(loss, logits, labels)
    void = (labels == VOID)[:, None].expand_as(logits)
    assert value > 0
    assert (gradient[void] == 0).all()
    assert gradient[~void].abs().sum() > 0
    changed = torch.where(void, torch.randn_like(logits) * 10, logits)
    again, other = value_and_gradient(loss, changed, labels)
    assert torch.equal(value, again)
    assert torch.equal(gradient, other)
    # The pixels alone, in a batch of another shape, cost the same.
    alone = logits.movedim(1, -1)[labels != VOID].T[None, :, None]
    torch.testing.assert_close(loss(alone, labels[labels != VOID][None, None]), value)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_labels_under_void_do_not_matter(name):
    # Two masks that differ only where the image is padded.
    loss = SegmentationLoss([load(LOSSES[name])], [1.0])
    logits, labels = case()
    padded = torch.nn.functional.pad(labels, (0, 3), value=VOID)
    wide = torch.nn.functional.pad(logits, (0, 3), value=5.0)
    torch.testing.assert_close(loss(wide, padded), loss(logits, labels))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_an_image_of_void_alone_costs_nothing(name):
    loss = SegmentationLoss([load(LOSSES[name])], [1.0])
    value, gradient = value_and_gradient(loss, case()[0], torch.full((2, 5, 6), VOID))
    assert value == 0
    assert (gradient == 0).all()


def test_values_are_those_of_the_definitions():
    logits, labels = case()
    p = logits.softmax(1).movedim(1, -1)[labels != VOID]
    y = labels[labels != VOID]
    onehot = torch.eye(4, dtype=torch.float64)[y]
    torch.testing.assert_close(
        cross_entropy(logits, labels), -p[torch.arange(len(y)), y].log().mean()
    )
    hit, sizes = (p * onehot).sum(0), p.sum(0) + onehot.sum(0)
    torch.testing.assert_close(dice(logits, labels), (1 - 2 * hit / sizes).mean())
    torch.testing.assert_close(jaccard(logits, labels), (1 - hit / (sizes - hit)).mean())
    s = logits.movedim(1, -1)[labels != VOID].sigmoid()
    right = torch.where(onehot == 1, s, 1 - s)
    torch.testing.assert_close(focal(logits, labels), (-((1 - right) ** 2) * right.log()).mean())


@pytest.mark.parametrize("loss", [dice, jaccard])
def test_absent_classes_do_not_dilute(loss):
    # A fifth class that nobody has and nobody predicts changes nothing.
    logits, labels = case()
    more = torch.cat([logits, torch.full((2, 1, 5, 6), -60.0, dtype=torch.float64)], 1)
    torch.testing.assert_close(loss(more, labels), loss(logits, labels))


def test_sums_are_weighted():
    logits, labels = case()
    both = SegmentationLoss([cross_entropy, dice], [1.0, 0.5])
    expected = cross_entropy(logits, labels) + 0.5 * dice(logits, labels)
    torch.testing.assert_close(both(logits, labels), expected)


def test_half_precision_logits_are_summed_in_float32():
    logits, labels = case()
    with torch.autocast("cpu", torch.bfloat16):
        value = SegmentationLoss([cross_entropy], [1.0])(logits.bfloat16(), labels)
    assert value.dtype == torch.float32


def test_weighted_cross_entropy_is_a_mean_with_the_weight_of_each_pixels_class():
    logits, labels = case()
    weights = torch.tensor([0.5, 1.0, 3.0, 0.0])
    pixels = logits.movedim(1, -1)[labels != VOID]
    classes = labels[labels != VOID]
    each = -pixels.log_softmax(-1)[torch.arange(len(classes)), classes]
    expected = (weights[classes] * each).sum() / weights[classes].sum()
    loss = SegmentationLoss([WeightedCrossEntropy(weights), dice], [1.0, 0.5])
    torch.testing.assert_close(loss(logits, labels), expected + 0.5 * dice(logits, labels))
    alike = WeightedCrossEntropy(torch.full((4,), 7.0))
    torch.testing.assert_close(alike(logits, labels), cross_entropy(logits, labels))
    void = torch.full_like(labels, VOID)
    assert WeightedCrossEntropy(weights)(logits, void) == 0


def test_weighted_by_inverse_frequency_all_classes_count_alike():
    weights = inverse_frequency([600, 300, 0, 100])
    counted = weights * torch.tensor([600, 300, 0, 100])
    torch.testing.assert_close(counted, torch.tensor([1000 / 3, 1000 / 3, 0, 1000 / 3]))
    assert weights[2] == weights[3] == weights.max()
