"""Intervals of mean IoU: the truth of the whole set, and what images in common take away."""

import statistics

import numpy as np
import pytest

from benchmarks.paired_bootstrap import compare, image_counts, interval, mean_iou, resampled


def write(folder, counts):
    folder.mkdir()
    rows = [(i, t, p, counts[i, t, p]) for i, t, p in zip(*counts.nonzero(), strict=True)]
    np.savez_compressed(folder / "test_counts.npz", rows=np.array(rows), num_classes=3)
    return folder / "test_counts.npz"


def predictions(seed: int, quality: float, images: int = 40):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 30, (images, 3, 3)) * 1.0
    hard = np.random.default_rng(0).uniform(0.2, 2.0, images)  # the same images are hard for all
    counts[:, range(3), range(3)] += 200 * quality * hard[:, None]
    return counts.round()


def test_counts_are_read_as_written(tmp_path):
    counts = predictions(1, 1.0)
    assert np.array_equal(image_counts(write(tmp_path / "run", counts)), counts)


def test_mean_iou_leaves_absent_classes_out():
    confusion = np.array([[6.0, 2, 0], [1, 1, 0], [0, 0, 0]])
    assert mean_iou(confusion) == pytest.approx((6 / 9 + 1 / 4) / 2)


def test_a_resample_counts_images_as_often_as_drawn():
    counts = predictions(2, 1.0, 3)
    draws = np.array([[1.0, 1, 1], [0, 3, 0]])
    expected = [float(mean_iou(counts.sum(0))), float(mean_iou(counts[1]))]
    assert resampled(counts, draws) == pytest.approx(expected)


def test_pairs_make_the_interval_of_a_difference_narrower(tmp_path):
    good = [write(tmp_path / f"good{s}", predictions(s, 1.1)) for s in range(3)]
    bad = [write(tmp_path / f"bad{s}", predictions(s + 9, 1.0)) for s in range(3)]
    first, second = compare({"bad": bad, "good": good}, 2000, 0)
    alone = [float(x) for x in first.partition("[")[2].partition("]")[0].split(",")]
    paired = [float(x) for x in second.rpartition("[")[2].partition("]")[0].split(",")]
    assert alone[0] < float(first.split()[1]) < alone[1]
    assert 0 < paired[0] < paired[1]
    assert paired[1] - paired[0] < 0.7 * (alone[1] - alone[0])
    assert compare({"bad": bad, "good": good}, 2000, 0) == [first, second]


def test_a_group_is_its_mean_and_deviation_over_seeds(tmp_path):
    counts = [predictions(seed, quality) for seed, quality in ((1, 0.8), (2, 1.1), (3, 1.2))]
    runs = [write(tmp_path / f"run{s}", each) for s, each in enumerate(counts)]
    three, one = compare({"three": runs, "one": runs[:1]}, 10, 0)
    values = [float(mean_iou(each.sum(0))) for each in counts]
    mean, std = statistics.mean(values), statistics.stdev(values)
    assert f" {mean:.4f} +- {std:.4f} [" in three
    assert f" {values[0]:.4f} +- 0.0000 [" in one
    assert f"]   {values[0] - mean:+.4f} [" in one


def test_an_interval_is_the_middle_95_percent():
    assert interval(np.arange(1001.0)) == (25, 975)


def test_other_test_sets_do_not_compare(tmp_path):
    groups = {
        "a": [write(tmp_path / "a", predictions(0, 1.0))],
        "b": [write(tmp_path / "b", predictions(0, 1.0, 20))],
    }
    with pytest.raises(SystemExit, match="different numbers of images"):
        compare(groups, 10, 0)
