"""Numbers of attention: 0 at chance, 1 or the like for a perfect map, against plain references."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import mass_mask
from models.measures.attention_quality import (
    AttentionMeter,
    mass_lift,
    object_ious,
    pixel_counts,
    uncertainty_coefficient,
)

VOID = 255


def scene(seed: int = 0, height: int = 60, width: int = 75) -> Tensor:
    labels = torch.zeros(height, width, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(seed)
    top, left = (int(torch.randint(0, size - 30, (), generator=generator)) for size in labels.shape)
    labels[top : top + 28, left : left + 26] = 3
    labels[top + 28 : top + 30, left : left + 26] = VOID
    labels[:10, :12] = 5
    return labels


@pytest.mark.parametrize("grid", [(10, 15), (7, 11), (60, 75)])
def test_ious_are_those_of_the_enlarged_mask(grid):
    labels = scene()
    maps = torch.rand(3, *grid, generator=torch.Generator().manual_seed(1))
    masks = mass_mask(maps, 0.6)
    counts = pixel_counts(labels, grid, 21)
    assert counts.sum() == (labels != VOID).sum()
    found = object_ious(masks, counts)
    enlarged = F.interpolate(masks[None].float(), size=labels.shape)[0].bool()
    valid = labels != VOID
    for row, label in enumerate((3, 5)):
        for head in range(3):
            truth, mask = (labels == label)[valid], enlarged[head][valid]
            expected = (truth & mask).sum() / (truth | mask).sum()
            assert float(found[row, head]) == pytest.approx(float(expected))


def test_lift_is_the_logarithm_of_a_ratio_of_shares():
    share = torch.tensor([1.0, 0, 0, 0])
    maps = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0], [3.0, 0, 0, 0]])
    assert mass_lift(maps, share).tolist() == pytest.approx([0, 1, 2])


def test_told_share_of_a_plain_table():
    # Independent: 0 but for the correction; a function of it: 1.
    assert uncertainty_coefficient(torch.full((3, 4), 10**7)) == pytest.approx(0, abs=1e-6)
    assert uncertainty_coefficient(torch.eye(3).long() * 10**7) == pytest.approx(1, abs=1e-6)
    assert (
        uncertainty_coefficient(torch.tensor([[5, 5], [0, 0]])) == 0
    )  # a single class has no entropy
    table = torch.tensor([[9, 1], [2, 8]])

    def entropy(counts: list[int]) -> float:
        n = sum(counts)
        plain = -sum(c / n * math.log(c / n) for c in counts if c)
        return plain + (sum(c > 0 for c in counts) - 1) / (2 * n)

    expected = (entropy([10, 10]) + entropy([11, 9]) - entropy([9, 1, 2, 8])) / entropy([10, 10])
    assert uncertainty_coefficient(table) == pytest.approx(expected)


def measured(make, count: int = 30):
    collector = AttentionMeter()
    for seed in range(count):
        labels = scene(seed, 64, 80)
        collector.update(make(labels, seed), pixel_counts(labels, (16, 20), 21))
    return collector.compute()


def objects_of(labels: Tensor) -> Tensor:
    counts = pixel_counts(labels, (16, 20), 21)
    return (counts[1:].sum(0) / counts.sum(0).clamp_min(1)).view(16, 20)


@pytest.mark.parametrize("levels", [10**6, 3])  # of which the second has ties
def test_chance_is_that_of_maps_that_are_displaced_and_sorted_again(levels):
    maps = (torch.rand(3, 16, 20, generator=torch.Generator().manual_seed(1)) * levels).ceil()
    counts = pixel_counts(scene(0, 64, 80), (16, 20), 21)
    collector, generator = AttentionMeter(), torch.Generator().manual_seed(0)
    collector.update(maps, counts)
    best = []
    for _ in range(8):
        by = [int(torch.randint(1, side, (), generator=generator)) for side in (16, 20)]
        moved = mass_mask(maps.roll(by, (1, 2)), 0.6)
        best.append(object_ious(moved, counts).amax(1).mean())
    assert collector.compute().jaccard_chance == float(torch.stack(best).mean())


def test_uniform_maps_are_at_chance():
    found = measured(lambda labels, seed: torch.full((2, 16, 20), 1 / 321))
    assert found.lift.tolist() == pytest.approx([0, 0], abs=1e-6)
    assert found.jaccard_corrected <= 0.02
    assert abs(found.information) < 0.02
    assert found.images == 30


def test_random_maps_are_at_chance():
    def noise(labels: Tensor, seed: int) -> Tensor:
        return torch.rand(3, 16, 20, generator=torch.Generator().manual_seed(seed)) ** 8

    found = measured(noise, 60)
    assert found.jaccard > 0.05  # not 0, as DINO's random network: the best of several heads
    assert abs(found.jaccard_corrected) < 0.03
    assert found.lift.abs().max() < 0.15
    assert (found.precision - found.precision_chance).abs().max() < 0.06
    assert abs(found.information) < 0.03


def test_maps_of_the_objects_are_nearly_perfect():
    def oracle(labels: Tensor, seed: int) -> Tensor:
        # One head an object, a third that looks at nothing in particular.
        counts = pixel_counts(labels, (16, 20), 21)
        shares = [(counts[label] / counts.sum(0).clamp_min(1)).view(16, 20) for label in (3, 5)]
        ramp = 1 + 0.01 * torch.rand(16, 20, generator=torch.Generator().manual_seed(seed))
        return torch.stack([shares[0] * ramp, shares[1] * ramp, ramp]).float()

    found = measured(oracle)
    # 60 % of the mass is 60 % of the object.
    assert found.jaccard == pytest.approx(0.6, abs=0.07)
    assert found.jaccard_corrected > 0.45
    assert found.information > 0.3
    whole = measured(lambda labels, seed: objects_of(labels)[None].float())
    area = torch.stack([objects_of(scene(s, 64, 80)).mean() for s in range(30)])
    assert float(whole.lift) == pytest.approx(float(-area.log2().mean()), abs=0.25)
    assert float(whole.precision) > 0.95


def test_the_order_of_heads_does_not_matter():
    def noise(labels: Tensor, seed: int) -> Tensor:
        maps = torch.rand(3, 16, 20, generator=torch.Generator().manual_seed(seed))
        return maps + torch.stack([objects_of(labels).float()] + 2 * [torch.zeros(16, 20)])

    first, second = measured(noise), measured(lambda *given: noise(*given)[[2, 0, 1]])
    assert first.jaccard == pytest.approx(second.jaccard)
    assert first.information == pytest.approx(second.information)
    assert second.lift.tolist() == pytest.approx(first.lift[[2, 0, 1]].tolist())
    assert set(first.scalars()) == set(second.scalars())


def test_attention_on_void_patches_counts_nowhere():
    labels, maps = scene(3), torch.rand(2, 10, 15)
    labels[54:, 70:] = VOID
    first, second = AttentionMeter(), AttentionMeter()
    counts = pixel_counts(labels, (10, 15), 21)
    first.update(maps, counts)
    moved = maps.clone()
    moved[:, 9, 14] = 5
    second.update(moved, counts)
    assert second.compute().lift.tolist() == first.compute().lift.tolist()
    assert second.compute().precision.tolist() == first.compute().precision.tolist()
    assert first.compute().images == 1


def test_information_is_that_of_patches_that_are_not_void():
    labels = scene(0, 64, 80)
    labels[:, 40:] = VOID
    counts = pixel_counts(labels, (16, 20), 21)
    maps = torch.rand(2, 16, 20, generator=torch.Generator().manual_seed(1))
    maps[0] += objects_of(labels)
    meter, generator = AttentionMeter(), torch.Generator().manual_seed(0)
    meter.update(maps, counts)
    by = [int(torch.randint(1, side, (), generator=generator)) for side in (16, 20)]
    told = []
    for shown in (maps, maps.roll(by, (1, 2))):
        table = torch.zeros(21, 4, dtype=torch.long)
        first, second = mass_mask(shown, 0.6).flatten(1)
        for patch in range(320):
            if counts[:, patch].sum():
                code = int(first[patch]) + 2 * int(second[patch])
                table[counts[:, patch].argmax(), code] += 1
        told.append(uncertainty_coefficient(table))
    assert meter.compute().information == pytest.approx(told[0] - told[1])


def test_objects_smaller_than_half_a_patch_leave_precision_alone_unknown():
    labels = torch.zeros(64, 64, dtype=torch.uint8)
    labels[4:12, 4:12] = 1  # a sixteenth of the first patch
    maps = torch.tensor([[[0.7, 0.1], [0.1, 0.1]]])
    meter = AttentionMeter()
    meter.update(maps, pixel_counts(labels, (2, 2), 2))
    found = meter.compute()
    assert found.jaccard == pytest.approx(64 / 1024)
    assert found.lift.tolist() == pytest.approx([math.log2(0.7 / 0.25)])
    assert found.precision.isnan().tolist() == [True]
    assert math.isnan(found.precision_chance)


def test_images_without_objects_or_background_are_left_out():
    collector = AttentionMeter()
    maps = torch.rand(2, 4, 4)
    for labels in (torch.zeros(8, 8), torch.full((8, 8), 4), torch.full((8, 8), VOID)):
        collector.update(maps, pixel_counts(labels.byte(), (4, 4), 21))
    with pytest.raises(ValueError, match="no image with objects"):
        collector.compute()
