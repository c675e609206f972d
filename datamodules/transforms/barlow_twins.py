"""The two views of Barlow Twins (Zbontar et al. 2021, section 2 and official code)."""

from __future__ import annotations

from datamodules.transforms.augmentations import RandomView, View


class BarlowTwinsViews:
    """Two random views of an image, cropped from the original.

    Args:
        image_size: side of the views in pixels.
        scale: share of the image's area, smallest and largest.
        blur: whether to blur; not usual for images of 32 px.

    Attributes:
        sizes: side of each view in pixels.
    """

    def __init__(
        self, image_size: int, scale: tuple[float, float] = (0.08, 1.0), blur: bool = True
    ) -> None:
        self.sizes: tuple[int, ...] = (image_size, image_size)
        self.first = RandomView(image_size, scale, blur=1.0 * blur, solarize=0.0)
        self.second = RandomView(image_size, scale, blur=0.1 * blur, solarize=0.2)

    def draw(self, size: tuple[int, int]) -> list[View]:
        """Draws both views of an image of this width and height."""
        return [self.first.draw(size), self.second.draw(size)]
