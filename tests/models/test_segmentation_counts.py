"""What is counted of a segmentation, and of a probe."""

import pytest
import torch

from models.measures.counting import Confusion
from models.measures.segmentation import mean_iou, metrics, occurs
from utils.palette import VOID

CLASSES = 171  # COCO-Stuff's


@pytest.fixture
def deterministic():
    mode = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode(mode)


def largest_tensor(act) -> int:
    """The most elements of any tensor that is made meanwhile."""
    sizes = [0]

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            sizes[0] = max(sizes[0], found.numel() if isinstance(found, torch.Tensor) else 0)
            return found

    with Watch():
        act()
    return sizes[0]


def labels(seed: int, side: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, CLASSES, (1, side, side), generator=generator)


def test_counts_are_those_of_a_loop_and_the_mode_is_as_before(deterministic):
    predicted, truth = labels(0, 20), labels(1, 20)
    truth[0, :3] = VOID
    measured = metrics(CLASSES)
    measured.update(predicted, truth)
    expected = torch.zeros(CLASSES, CLASSES, dtype=torch.long)
    for there, said in zip(truth[0, 3:].flatten(), predicted[0, 3:].flatten(), strict=True):
        expected[there, said] += 1
    assert torch.equal(measured.compute()["confusion"], expected)
    counts = Confusion(CLASSES, validate_args=False)  # a probe's, of logits of images
    counts.update(torch.eye(CLASSES)[predicted[0, 3:].flatten()], truth[0, 3:].flatten())
    assert torch.equal(counts.compute(), expected)
    assert torch.get_deterministic_debug_mode() == deterministic


def test_the_mean_iou_alone_is_that_of_all_numbers():
    alone, all_of_them = mean_iou(CLASSES), metrics(CLASSES)
    for seed in range(2):
        predicted, truth = labels(seed), labels(seed).roll(seed, 2)
        truth[0, :3] = VOID
        for counted in (alone, all_of_them):
            counted.update(predicted, truth)
    assert alone.compute()["miou"] == all_of_them.compute()["miou"]
    assert 0 < alone.compute()["miou"] < 1


def test_the_mean_is_over_the_classes_that_occur_or_are_predicted():
    measured = metrics(5)
    measured.update(torch.tensor([[[0, 1, 1, 3]]]), torch.tensor([[[0, 1, 2, VOID]]]))
    found = measured.compute()
    assert occurs(found["confusion"]).tolist() == [True, True, True, False, False]
    assert found["iou"][:3].tolist() == [1, 0.5, 0]
    assert float(found["miou"]) == pytest.approx(0.5)
    measured.update(torch.tensor([[[4]]]), torch.tensor([[[0]]]))  # predicted alone
    found = measured.compute()
    there = occurs(found["confusion"])
    assert there.tolist() == [True, True, True, False, True]
    assert float(found["miou"]) == pytest.approx(float(found["iou"][there].mean()))


@pytest.mark.parametrize("kind", [metrics, mean_iou, Confusion])
def test_deterministic_counts_need_no_mesh_of_pixels_and_pairs_of_classes(kind, deterministic):
    measured, predicted, truth = kind(CLASSES), labels(0), labels(1)
    largest = largest_tensor(lambda: measured.update(predicted, truth))
    assert largest <= max(predicted.numel(), CLASSES**2)


def test_the_mode_is_put_back_when_labels_cannot_be_counted(deterministic):
    with pytest.raises(IndexError):
        metrics(3).update(torch.zeros(1, 2, 2, dtype=torch.int), torch.zeros(1, 3, 3))
    assert torch.get_deterministic_debug_mode() == deterministic
