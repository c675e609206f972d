"""COCO 2017 images, those of COCO-Stuff 164k (Caesar et al. 2018): 118,287 and 5,000."""

from __future__ import annotations

from collections.abc import Sequence

from datamodules.base import ImageSource, image_files
from datamodules.loading import ImageItem


class COCOStuff(ImageSource):
    """`root/images/train2017` and `root/images/val2017`, or both directly below `root`."""

    def files(self, split: str) -> Sequence[ImageItem]:
        """See `ImageSource.files`; `train` and `val`."""
        if split not in ("train", "val"):
            raise ValueError(f"--data.split {split}: COCO-Stuff has train and val only.")
        places = [self.root / "images" / f"{split}2017", self.root / f"{split}2017"]
        for place in places:
            if place.is_dir():
                return image_files(place)
        raise FileNotFoundError(
            f"No COCO images at --data.root {self.root}: expected one of "
            f"{', '.join(str(place) for place in places)}. Get train2017.zip and val2017.zip from "
            "cocodataset.org."
        )
