"""Writes a small CIFAR-10: the first images of each class, as an npz file that `cifar10` reads.

python benchmarks/cifar_subset.py $DATA/cifar10_subset.npz --per-class 200 --out cifar10-2000.npz
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from datamodules.cifar10 import CIFAR10, CLASSES
from datamodules.reading import read_rgb


def main() -> None:
    """Reads the arguments and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", help="official folder or npz file")
    parser.add_argument("--per-class", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    source = CIFAR10(arguments.root)
    (_, train), (_, test) = source.labels("train"), source.labels("val")
    y_train = np.array(train)
    of_class = [np.flatnonzero(y_train == c)[: arguments.per_class] for c in range(len(CLASSES))]
    rows = np.sort(np.concatenate(of_class))
    x_train, x_test = (
        np.stack([np.array(read_rgb(image)) for image in source.files(split)])
        for split in ("train", "val")
    )
    np.savez(
        arguments.out,
        x_train=x_train[rows],
        y_train=y_train[rows],
        x_test=x_test,
        y_test=np.array(test),
    )
    print(f"{arguments.out}: {len(rows)} training and {len(test)} test images")


if __name__ == "__main__":
    main()
