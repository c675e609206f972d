"""The two views of Barlow Twins (Zbontar et al. 2021, section 2 and official code)."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from datamodules.transforms.augmentations import random_view


class BarlowTwinsViews:
    """Two random views of an image, cropped from the original.

    Args:
        image_size: side of the views in pixels.
        scale: share of the image's area, smallest and largest.
        blur: with blur; images of 32 px are trained on without.

    Attributes:
        sizes: side of each view in pixels.
    """

    def __init__(
        self, image_size: int, scale: tuple[float, float] = (0.08, 1.0), blur: bool = True
    ) -> None:
        self.sizes: tuple[int, ...] = (image_size, image_size)
        self.first = random_view(image_size, scale, blur=1.0 * blur, solarize=0.0)
        self.second = random_view(image_size, scale, blur=0.1 * blur, solarize=0.2)

    def __call__(self, image: Image.Image) -> tuple[Tensor, ...]:
        """Draws both views, `(3, H, W)` uint8, from torch's generator."""
        return self.first(image), self.second(image)
