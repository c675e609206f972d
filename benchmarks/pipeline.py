"""Times several libraries in turns: milliseconds of one core per image, from JPEG to views.

python benchmarks/pipeline.py $DATA/JPEGImages --masks $DATA/SegmentationClass --out pipeline.json

Barlow Twins: two views of 224 px. DINO: two of 224 and eight of 96. Segmentation: a crop of 224 px
of a scaled image and its mask. All have equal parameters and run in this process, with decoding.
lightly and albumentations take part if installed. Times are medians of processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from datamodules.image_files import ImageFiles
from datamodules.masked_images import MaskedImages
from datamodules.transforms.barlow_twins import BarlowTwinsViews
from datamodules.transforms.dino import MultiCropViews
from datamodules.transforms.segmentation import Standard, TrainingCrop

SIDES = list(range(112, 449))  # shorter sides of scaled segmentation images
# Views: side, share of the area, probabilities of blur and of solarizing.
TWO = [(224, (0.08, 1.0), 1.0, 0.0), (224, (0.08, 1.0), 0.1, 0.2)]
TEN = [(224, (0.4, 1.0), 1.0, 0.0), (224, (0.4, 1.0), 0.1, 0.2), *[(96, (0.05, 0.4), 0.5, 0.0)] * 8]

Task = Callable[[Path, Path], Any]  # takes an image and its mask


def ours() -> dict[str, Task]:
    """Returns this project's data sets."""
    two, ten = BarlowTwinsViews(224), MultiCropViews(224, 96, 8, TEN[0][1], TEN[2][1])
    crop = TrainingCrop(224, Standard(224))
    return {
        "barlow_twins": lambda image, _: ImageFiles([image], two, 0)[(0, 0)],
        "dino": lambda image, _: ImageFiles([image], ten, 0)[(0, 0)],
        "segmentation": lambda *pair: MaskedImages([pair], crop, 255, None, 0, False)[(0, 0)],
    }


def torchvisions() -> dict[str, Task]:
    """Returns torchvision's transforms, version 2, on PIL images up to the blur."""

    def view(side: int, scale: tuple[float, float], blur: float, solarize: float) -> Any:
        crop = v2.RandomResizedCrop(side, scale, interpolation=InterpolationMode.BICUBIC)
        jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8)
        blurred = v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=blur)
        colours = [jitter, v2.RandomGrayscale(0.2), v2.PILToTensor(), blurred]
        return v2.Compose(
            [crop, v2.RandomHorizontalFlip(), *colours, v2.RandomSolarize(128, p=solarize)]
        )

    crop = [v2.RandomShortestSize(SIDES), v2.RandomCrop(224, pad_if_needed=True)]
    colours = [v2.RandomHorizontalFlip(), v2.RandomPhotometricDistort(), v2.PILToTensor()]
    masked = v2.Compose([*crop, *colours])
    two, ten = ([view(*recipe) for recipe in recipes] for recipes in (TWO, TEN))
    return {
        "barlow_twins": lambda image, _: [each(rgb) for rgb in [read(image)] for each in two],
        "dino": lambda image, _: [each(rgb) for rgb in [read(image)] for each in ten],
        "segmentation": lambda image, mask: masked(read(image), tv_tensors.Mask(labels(mask))),
    }


def lightlys() -> dict[str, Task]:
    """Returns lightly's transforms for both papers, without normalisation."""
    from lightly.transforms import DINOTransform, byol_transform

    kinds = (byol_transform.BYOLView1Transform, byol_transform.BYOLView2Transform)
    two = byol_transform.BYOLTransform(*(kind(normalize=None) for kind in kinds))
    ten = DINOTransform(n_local_views=8, normalize=None)
    return {"barlow_twins": lambda image, _: two(read(image)), "dino": lambda i, _: ten(read(i))}


def albumentations() -> dict[str, Task]:
    """Returns albumentations' transforms, on arrays that OpenCV decodes."""
    import albumentations as A

    def view(side: int, scale: tuple[float, float], blur: float, solarize: float) -> Any:
        crop = A.RandomResizedCrop((side, side), scale, interpolation=cv2.INTER_CUBIC)
        jitter = A.ColorJitter((0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1), p=0.8)
        blurred = A.GaussianBlur(0, (0.1, 2.0), p=blur)
        colours = [jitter, A.ToGray(p=0.2), blurred, A.Solarize((0.5, 0.5), p=solarize)]
        return A.Compose([crop, A.HorizontalFlip(), *colours, A.ToTensorV2()])

    crop = [A.SmallestMaxSize(SIDES), A.RandomCrop(224, 224, pad_if_needed=True)]
    jitter = A.ColorJitter((0.875, 1.125), (0.5, 1.5), (0.5, 1.5), (-0.05, 0.05))
    masked = A.Compose([*crop, A.HorizontalFlip(), jitter, A.ToTensorV2()])
    two, ten = ([view(*recipe) for recipe in recipes] for recipes in (TWO, TEN))
    decode = partial(cv2.imread, flags=cv2.IMREAD_COLOR_RGB)
    return {
        "barlow_twins": lambda i, _: [f(image=x) for x in [decode(str(i))] for f in two],
        "dino": lambda i, _: [f(image=x) for x in [decode(str(i))] for f in ten],
        "segmentation": lambda i, m: masked(image=decode(str(i)), mask=labels(m)),
    }


def read(file: Path) -> Image.Image:
    """Decodes as torchvision's data sets do."""
    return Image.open(file).convert("RGB")


def labels(file: Path) -> Any:
    """Decodes a mask."""
    return np.array(Image.open(file))


def measure(tasks: dict[str, Task], pairs: list[Any], rounds: int) -> dict[str, float]:
    """Returns milliseconds per image: medians over rounds in which all take turns."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds + 1):
        for name, task in tasks.items():
            start = time.process_time()
            for pair in pairs:
                task(*pair)
            if number:  # the first warms up
                times[name].append((time.process_time() - start) / len(pairs) * 1e3)
    return {name: round(statistics.median(each), 3) for name, each in times.items()}


def main() -> None:
    """Measures and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, help="a folder of JPEGs")
    parser.add_argument("--masks", type=Path, help="a folder of PNGs with labels, of equal names")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    masks = arguments.masks or arguments.images
    pairs = [(file, masks / f"{file.stem}.png") for file in sorted(arguments.images.glob("*.jpg"))]
    pairs = [pair for pair in pairs if not arguments.masks or pair[1].exists()][: arguments.count]
    makers: dict[str, Callable[[], dict[str, Task]]] = {"ours": ours, "torchvision": torchvisions}
    others = {"lightly": lightlys, "albumentations": albumentations}
    makers |= {name: make for name, make in others.items() if find_spec(name)}
    made, results = {name: make() for name, make in makers.items()}, {}
    for task in ("barlow_twins", "dino", *(["segmentation"] if arguments.masks else [])):
        having = {name: tasks[task] for name, tasks in made.items() if task in tasks}
        results[task] = measure(having, pairs, arguments.rounds)
    packages = ("torch", "torchvision", "pillow", "opencv-python-headless", *list(made)[2:])
    versions = {name: version(name) for name in packages}
    found = {"ms_per_image": results, "images": len(pairs), "versions": versions}
    print(text := json.dumps(found, indent=2))
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
