"""Dense k-NN against plain float64 loops."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.heads.base import resize
from models.measures.dense_knn import PatchMemory, labelled_patches
from models.measures.segmentation import metrics

VOID = 255
CLASSES = 4


def naive_shares(labels: Tensor, grid: tuple[int, int]) -> list[list[float] | None]:
    """Class shares of every patch, pixel by pixel; None where all is void."""
    counts = [[0] * CLASSES for _ in range(grid[0] * grid[1])]
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            if labels[y, x] != VOID:
                patch = y * grid[0] // height * grid[1] + x * grid[1] // width
                counts[patch][int(labels[y, x])] += 1
    return [[n / sum(row) for n in row] if sum(row) else None for row in counts]


def naive_vote(
    query: list[float], bank: list[tuple[list[float], list[float]]], k: int, temperature: float
) -> list[float]:
    def cosine(a: list[float], b: list[float]) -> float:
        dot = sum(p * q for p, q in zip(a, b, strict=True))
        return dot / math.sqrt(sum(p * p for p in a)) / math.sqrt(sum(q * q for q in b))

    nearest = sorted(((cosine(query, f), s) for f, s in bank), key=lambda e: -e[0])[:k]
    weights = [math.exp(c / temperature) for c, _ in nearest]
    return [
        sum(w * s[c] for w, (_, s) in zip(weights, nearest, strict=True)) / sum(weights)
        for c in range(CLASSES)
    ]


def naive_bilinear(grid: list[list[float]], y: float, x: float) -> float:
    y, x = max(y, 0.0), max(x, 0.0)
    top, left = int(y), int(x)
    below, right = min(top + 1, len(grid) - 1), min(left + 1, len(grid[0]) - 1)
    a, b = y - top, x - left
    return (
        (1 - a) * (1 - b) * grid[top][left]
        + (1 - a) * b * grid[top][right]
        + a * (1 - b) * grid[below][left]
        + a * b * grid[below][right]
    )


def scene(seed: int, size: tuple[int, int] = (13, 18)) -> tuple[Tensor, Tensor]:
    """Features `(6, 3, 4)` and labels, a corner of which is void."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, CLASSES, (4, 5), generator=generator, dtype=torch.uint8)
    labels = resize(blocks[None, None].float(), size)[0, 0].round().to(torch.uint8)
    labels[:5, :7] = VOID
    return torch.randn(6, 3, 4, generator=generator), labels


def filled(k: int, temperature: float = 0.02, **options: int) -> PatchMemory:
    memory = PatchMemory(6, CLASSES, k, temperature, **options)
    parts = [labelled_patches(*scene(seed), CLASSES) for seed in (0, 1)]
    memory.fill(*(torch.cat(each) for each in zip(*parts, strict=True)))
    return memory


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.02), (5, 0.02), (7, 0.5), (99, 0.1)])
def test_the_whole_measure_is_that_of_plain_loops(k, temperature):
    bank = []
    for seed in (0, 1):
        maps, labels = scene(seed)
        for place, shares in enumerate(naive_shares(labels, (3, 4))):
            if shares is not None:
                bank.append((maps.flatten(1)[:, place].double().tolist(), shares))
    memory = filled(k, temperature)
    assert len(memory) == len(bank) < 24  # some patches are void only
    confusion = torch.zeros(CLASSES, CLASSES, dtype=torch.long)
    counted = metrics(CLASSES)
    for seed in (2, 3, 4):
        maps, labels = scene(seed)
        votes = [
            [naive_vote(maps[:, y, x].double().tolist(), bank, k, temperature) for x in range(4)]
            for y in range(3)
        ]
        found = memory.label_maps(maps[None])
        expected = torch.tensor(votes, dtype=torch.float64).movedim(-1, 0)
        torch.testing.assert_close(found[0].double(), expected, rtol=0, atol=1e-5)
        large = resize(found, (13, 18))
        counted.update(large.argmax(1).int(), labels[None].int())
        planes = [[[votes[y][x][c] for x in range(4)] for y in range(3)] for c in range(CLASSES)]
        for y in range(13):
            for x in range(18):
                place = ((y + 0.5) * 3 / 13 - 0.5, (x + 0.5) * 4 / 18 - 0.5)
                scores = [naive_bilinear(plane, *place) for plane in planes]
                got = large[0, :, y, x].tolist()
                assert got == pytest.approx(scores, abs=1e-5)
                if labels[y, x] != VOID:
                    confusion[labels[y, x].long(), scores.index(max(scores))] += 1
    hit, union = confusion.diagonal(), confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    expected_miou = (hit[union > 0] / union[union > 0]).mean()
    assert float(counted.compute()["miou"]) == pytest.approx(float(expected_miou), abs=1e-6)


@pytest.mark.parametrize("at_once", [1, 40, 100, 1 << 24])
def test_blocks_change_nothing(at_once):
    queries = torch.randn(57, 6, generator=torch.Generator().manual_seed(5))
    whole = filled(5)(queries)
    torch.testing.assert_close(filled(5, at_once=at_once)(queries), whole, rtol=0, atol=1e-6)
    assert torch.equal(filled(5, at_once=at_once)(queries), filled(5, at_once=at_once)(queries))


def test_neither_similarities_nor_shares_take_more_than_is_said():
    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            if isinstance(found, Tensor) and found.dim() > 1 and len(found) < len(queries):
                self.numbers = max(self.numbers, found.numel())
            return found

    memory = PatchMemory(6, 40, k=9, at_once=1000)
    draws = torch.Generator().manual_seed(0)
    memory.fill(torch.randn(50, 6, generator=draws), torch.rand(50, 40, generator=draws))
    queries = torch.randn(57, 6, generator=draws)
    with Largest() as largest:
        memory(queries)
    assert 500 < largest.numbers <= 1000  # 9 neighbours have 360 shares, two patches 720


def test_what_is_remembered_is_found():
    memory = filled(1)
    torch.testing.assert_close(memory(memory.features), memory.shares)
    # A memory smaller than k votes as a whole.
    torch.testing.assert_close(filled(len(memory))(memory.features), filled(500)(memory.features))


def test_shares_sum_to_one_and_neither_length_nor_precision_matters():
    memory = filled(5)
    queries = torch.randn(9, 6, generator=torch.Generator().manual_seed(5)).half()
    found = memory(queries)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(1), torch.ones(9))
    torch.testing.assert_close(found, memory(queries.float()))
    torch.testing.assert_close(found, memory(queries.double() * 7))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(memory(queries), found)
    assert memory(queries[:0]).shape == (0, CLASSES)


def test_void_counts_nowhere():
    maps, labels = scene(0)
    features, shares = labelled_patches(maps, labels, CLASSES)
    there = [row for row in naive_shares(labels, (3, 4)) if row is not None]
    assert len(features) == len(there)
    torch.testing.assert_close(shares, torch.tensor(there))
    with pytest.raises(ValueError, match="void all over"):
        PatchMemory(6, CLASSES).fill(*labelled_patches(maps, labels * 0 + VOID, CLASSES))
    with pytest.raises(ValueError, match="nothing is remembered"):
        PatchMemory(6, CLASSES)(maps.flatten(1).T)


def test_a_memory_is_loaded_whatever_its_length():
    memory, other = filled(5), PatchMemory(6, CLASSES, 5)
    other.load_state_dict(memory.state_dict())
    queries = torch.randn(9, 6)
    assert torch.equal(memory(queries), other(queries))
    other.load_state_dict(memory.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        PatchMemory(7, CLASSES).load_state_dict(memory.state_dict())
