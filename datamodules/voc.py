"""Pascal VOC 2012 in its official folder layout (Everingham et al. 2015)."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import VOCSegmentation

from datamodules.base import ImageDataModule, image_files
from datamodules.loading import Loading, Views


def find_voc(root: Path) -> Path:
    """Returns the folder that holds JPEGImages: `root` itself or a usual place below it.

    Raises:
        FileNotFoundError: there is none; says where it was looked for.
    """
    places = [root, root / "VOCdevkit" / "VOC2012", root / "VOC2012", root / "VOCdevkit"]
    for place in places:
        if (place / "JPEGImages").is_dir():
            return place
    raise FileNotFoundError(
        f"No Pascal VOC at --data.root {root}: expected a folder JPEGImages in one of "
        f"{', '.join(str(place) for place in places)}. --data.download true fetches it (2 GB)."
    )


def voc_files(folder: Path, split: str) -> list[Path]:
    """Lists the JPEGs of a split.

    Args:
        folder: the one that holds JPEGImages and ImageSets.
        split: `train`, `val`: the segmentation lists; `all`: every JPEG; `all_minus_val`.

    Raises:
        FileNotFoundError: a list, or a listed image, is missing.
        ValueError: an empty list.
    """
    if split == "all":
        return image_files(folder / "JPEGImages")
    if split == "all_minus_val":
        val = set(voc_files(folder, "val"))
        return [file for file in voc_files(folder, "all") if file not in val]
    listing = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not listing.is_file():
        raise FileNotFoundError(f"{listing} is missing: the VOC folder is incomplete.")
    files = [folder / "JPEGImages" / f"{name}.jpg" for name in listing.read_text().split()]
    if not files:
        raise ValueError(f"{listing} lists no images.")
    missing = [file for file in files if not file.exists()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} images in {listing} do not exist, first: {missing[0]}."
        )
    return files


class VOCDataModule(ImageDataModule):
    """VOC 2012: the segmentation lists (1,464 / 1,449 images) or all 17,125 JPEGs minus val."""

    def __init__(
        self,
        root: str,
        views: Views,
        image_size: int,
        loading: Loading,
        split: str = "train",
        download: bool = False,
    ) -> None:
        super().__init__(views, image_size, loading, split)
        self.root = Path(root).expanduser()
        self.download = download

    def prepare_data(self) -> None:
        """Downloads with torchvision when asked to and not there yet."""
        if not self.download:
            return
        try:
            find_voc(self.root)
        except FileNotFoundError:
            VOCSegmentation(str(self.root), year="2012", image_set="train", download=True)

    def files(self, split: str) -> list[Path]:
        """See `ImageDataModule.files`."""
        return voc_files(find_voc(self.root), split)
