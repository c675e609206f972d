"""Compares mean IoU of groups of runs with that of the first, with 95 % intervals.

    python benchmarks/paired_bootstrap.py --dir runs naive=naive-s0,naive-s1 fused=fused-s0,fused-s1

A group is one setting with several seeds; its value is the mean of its runs' mIoU. Test images are
resampled with replacement, the same ones for all runs (Efron & Tibshirani 1993, chapter 8), so that
images hard for all cancel in the difference. The interval covers the choice of test images; the
standard deviation beside it covers the choice of seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
_AT_ONCE = 500


def image_counts(file: Path) -> NDArray[np.float64]:
    """Reads the file of `callbacks.image_counts` as counts `(images, classes, classes)`."""
    with np.load(file) as content:
        rows, classes = content["rows"].astype(np.int64), int(content["num_classes"])
    counts = np.zeros((rows[:, 0].max() + 1, classes, classes))
    np.add.at(counts, (rows[:, 0], rows[:, 1], rows[:, 2]), rows[:, 3])
    return counts


def mean_iou(confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the mean IoU of `(..., C, C)` over the classes that occur or are predicted."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    union = confusion.sum(-1) + confusion.sum(-2) - hits
    there = union > 0
    iou = np.divide(hits, union, out=np.zeros_like(hits), where=there)
    return np.asarray(iou.sum(-1) / there.sum(-1))


def resampled(counts: NDArray[np.float64], draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns mean IoU of resamples; `draws` `(resamples, images)` counts each image's draws."""
    images, classes, _ = counts.shape
    flat = counts.reshape(images, -1)
    # All resamples of 171 classes at once would be 2.3 GB.
    parts = np.split(draws, range(_AT_ONCE, len(draws), _AT_ONCE))
    return np.concatenate([mean_iou((part @ flat).reshape(-1, classes, classes)) for part in parts])


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Returns the ends of the middle 95 %."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def compare(groups: dict[str, Sequence[Path]], resamples: int, seed: int) -> list[str]:
    """Returns the table's lines, one per group."""
    counts = {name: [image_counts(file) for file in files] for name, files in groups.items()}
    images = {len(each) for runs in counts.values() for each in runs}
    if len(images) > 1:
        raise SystemExit(f"The runs were tested on different numbers of images: {sorted(images)}.")
    (total,) = images
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(total, [1 / total] * total, resamples).astype(np.float64)
    lines, first = [], None
    for name, runs in counts.items():
        single = np.array([mean_iou(each.sum(0)) for each in runs])
        values = np.mean([resampled(each, draws) for each in runs], axis=0)
        line = f"{name:32s} {single.mean():.4f} +- {single.std(ddof=len(single) > 1):.4f}"
        line += " [{:.4f}, {:.4f}]".format(*interval(values))
        if first is None:
            first = (single.mean(), values)
        else:
            line += f"   {single.mean() - first[0]:+.4f}"
            line += " [{:+.4f}, {:+.4f}]".format(*interval(values - first[1]))
        lines.append(line)
    return lines


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("groups", nargs="+", metavar="NAME=RUN,RUN,…")
    parser.add_argument("--dir", type=Path, default=Path("runs"))
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    groups: dict[str, Sequence[Path]] = {}
    for group in given.groups:
        name, _, runs = group.partition("=")
        groups[name] = [given.dir / run / "test_counts.npz" for run in runs.split(",")]
    print(
        "group, mIoU +- std over seeds [95 % over images], difference to the first [95 %, paired]"
    )
    print("\n".join(compare(groups, given.resamples, given.seed)))


if __name__ == "__main__":
    main()
