"""The views of LeJEPA: any number, all drawn alike (Balestriero & LeCun 2025, minimal example)."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from datamodules.transforms.augmentations import random_view


class LeJEPAViews:
    """Several random views of an image, cropped from the original; none is special.

    Args:
        image_size: side of the views in pixels.
        number: V.
        scale: share of the image's area, smallest and largest.
        blur: with blur; images of 32 px are trained on without.

    Attributes:
        sizes: side of each view in pixels.
    """

    def __init__(
        self, image_size: int, number: int, scale: tuple[float, float], blur: bool = True
    ) -> None:
        self.sizes: tuple[int, ...] = (image_size,) * number
        self.view = random_view(image_size, scale, blur=0.5 * blur, solarize=0.2)

    def __call__(self, image: Image.Image) -> tuple[Tensor, ...]:
        """Draws all views, `(3, H, W)` uint8 each, from torch's generator."""
        return tuple(self.view(image) for _ in self.sizes)
