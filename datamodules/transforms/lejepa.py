"""The views of LeJEPA: any number, all drawn alike (Balestriero & LeCun 2025).

Sizes, numbers and crops are those of its minimal example. Colours are those of the other methods
here (`RandomView`); the example jitters twice as strongly and solarizes half as often.
"""

from __future__ import annotations

from datamodules.transforms.augmentations import RandomView, View


class LeJEPAViews:
    """Several random views of an image, cropped from the original; none is special.

    Args:
        image_size: side of the views in pixels.
        number: number of views V.
        scale: share of the image's area, smallest and largest.
        blur: whether to blur; not usual for images of 32 px.

    Attributes:
        sizes: side of each view in pixels.
    """

    def __init__(
        self, image_size: int, number: int, scale: tuple[float, float], blur: bool = True
    ) -> None:
        self.sizes: tuple[int, ...] = (image_size,) * number
        self.view = RandomView(image_size, scale, blur=0.5 * blur, solarize=0.2)

    def draw(self, size: tuple[int, int]) -> list[View]:
        """Draws all views of an image of this width and height."""
        return [self.view.draw(size) for _ in self.sizes]
