"""COCO-Stuff 164k (Caesar et al. 2018): COCO 2017 images, 80 things and 91 stuff classes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from datamodules.listing import image_files, root_nearby
from datamodules.masks.meanings import IndexMeanings
from datamodules.reading import ImageItem
from datamodules.sources import MaskedSource
from utils.palette import VOID

# The official labels.txt by category id, from 1. Those in brackets never occur in the masks.
_NAMES = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, "
    "fire hydrant, (street sign), stop sign, parking meter, bench, bird, cat, dog, horse, sheep, "
    "cow, elephant, bear, zebra, giraffe, (hat), backpack, umbrella, (shoe), (eye glasses), "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, "
    "baseball glove, skateboard, surfboard, tennis racket, bottle, (plate), wine glass, cup, fork, "
    "knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, "
    "cake, chair, couch, potted plant, bed, (mirror), dining table, (window), (desk), toilet, "
    "(door), tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, "
    "refrigerator, (blender), book, clock, vase, scissors, teddy bear, hair drier, toothbrush, "
    "(hair brush), banner, blanket, branch, bridge, building-other, bush, cabinet, cage, "
    "cardboard, carpet, ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, "
    "curtain, desk-stuff, dirt, door-stuff, fence, floor-marble, floor-other, floor-stone, "
    "floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel, "
    "ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, "
    "napkin, net, paper, pavement, pillow, plant-other, plastic, platform, playingfield, railing, "
    "railroad, river, road, rock, roof, rug, salad, sand, sea, shelf, sky-other, skyscraper, snow, "
    "solid-other, stairs, stone, straw, structural-other, table, tent, textile-other, towel, tree, "
    "vegetable, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, "
    "wall-wood, water-other, waterdrops, window-blind, window-other, wood"
)
_CATEGORIES = _NAMES.split(", ")
# Masks store the category id minus 1.
_VALUES = [value for value, name in enumerate(_CATEGORIES) if not name.startswith("(")]


class COCOStuff(MaskedSource):
    """Images in `root/images/train2017` and `val2017`, or these two directly below `root`.

    Masks, for segmentation, in `root/stuffthingmaps/train2017` and `val2017`: grey PNGs that store
    the category id minus 1, 255 for unlabelled. There is no background class.
    """

    classes = tuple(_CATEGORIES[value] for value in _VALUES)
    meanings = IndexMeanings({value: label for label, value in enumerate(_VALUES)} | {VOID: VOID})

    def files(self, split: str) -> Sequence[ImageItem]:
        """See `ImageSource.files`; `train` and `val`."""
        return image_files(self._images(split))

    def pairs(self, split: str) -> list[tuple[Path, Path]]:
        """See `MaskedSource.pairs`; `train` and `val`."""
        images = image_files(self._images(split))
        folder = _masks_in(self.root) / f"{split}2017"
        if not folder.is_dir():
            panoptic = sorted(self.root.glob("**/panoptic_*"))
            hint = f" {panoptic[0]} holds panoptic masks, which are not these." if panoptic else ""
            hint += root_nearby(self.root, lambda r: _masks_in(r).is_dir(), self.root_option)
            raise FileNotFoundError(
                f"No COCO-Stuff masks in {folder}.{hint} Get stuffthingmaps_trainval2017.zip from "
                "github.com/nightrome/cocostuff."
            )
        pairs = [(image, folder / f"{image.stem}.png") for image in images]
        missing = next((mask for _, mask in pairs if not mask.is_file()), None)
        if missing:
            raise FileNotFoundError(f"There is no mask {missing} for its image.")
        return pairs

    def _images(self, split: str) -> Path:
        if split not in ("train", "val"):
            raise ValueError(f"--data.split {split}: COCO-Stuff has train and val only.")
        found = _images_in(self.root, split)
        if found is None:
            nearby = root_nearby(self.root, partial(_images_in, split=split), self.root_option)
            raise FileNotFoundError(
                f"No COCO images at {self.root_option} {self.root}: expected one of "
                f"{', '.join(map(str, _places(self.root, split)))}.{nearby} Get train2017.zip and "
                "val2017.zip from cocodataset.org."
            )
        return found


def _places(root: Path, split: str) -> list[Path]:
    return [root / "images" / f"{split}2017", root / f"{split}2017"]


def _images_in(root: Path, split: str) -> Path | None:
    return next(filter(Path.is_dir, _places(root, split)), None)


def _masks_in(root: Path) -> Path:
    return root / "stuffthingmaps"
