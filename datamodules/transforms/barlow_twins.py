"""The two views of Barlow Twins (Zbontar et al. 2021, section 2 and official code)."""

from __future__ import annotations

from datamodules.transforms.augmentations import RandomView, Views


class BarlowTwinsViews(Views):
    """Two random views of an image, cropped from the original.

    Args:
        image_size: side of the views in pixels.
        scale: share of the image's area, smallest and largest.
        blur: whether to blur; not usual for images of 32 px.
    """

    def __init__(
        self, image_size: int, scale: tuple[float, float] = (0.08, 1.0), blur: bool = True
    ) -> None:
        first = RandomView(image_size, scale, blur=1.0 * blur, solarize=0.0)
        second = RandomView(image_size, scale, blur=0.1 * blur, solarize=0.2)
        super().__init__(first, second)
