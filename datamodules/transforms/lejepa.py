"""The views of LeJEPA: any number, all drawn alike (Balestriero & LeCun 2025).

Sizes, numbers and crops are those of its minimal example. Colours are those of the other methods
here (`RandomView`); the example jitters twice as strongly and solarizes half as often.
"""

from __future__ import annotations

from datamodules.transforms.augmentations import RandomView, Views


class LeJEPAViews(Views):
    """Several random views of an image, cropped from the original; none is special.

    Args:
        image_size: side of the views in pixels.
        number: number of views V.
        scale: share of the image's area, smallest and largest.
        blur: whether to blur; not usual for images of 32 px.
    """

    def __init__(
        self, image_size: int, number: int, scale: tuple[float, float], blur: bool = True
    ) -> None:
        view = RandomView(image_size, scale, blur=0.5 * blur, solarize=0.2)
        super().__init__(*[view] * number)
