"""The views of DINO: two global crops and several small local ones (Caron et al. 2021)."""

from __future__ import annotations

from datamodules.transforms.augmentations import RandomView, Views


class MultiCropViews(Views):
    """Two global views of an image, then the local ones (multi-crop, SwAV), all from the original.

    Args:
        image_size: side of the global views in pixels.
        local_size: side of the local views in pixels.
        local_number: how many local views; 0: no multi-crop.
        global_scale: share of the image's area in a global view, smallest and largest.
        local_scale: the same of a local view.
        blur: whether to blur; not usual for images of 32 px.
    """

    def __init__(
        self,
        image_size: int,
        local_size: int,
        local_number: int,
        global_scale: tuple[float, float],
        local_scale: tuple[float, float],
        blur: bool = True,
    ) -> None:
        first = RandomView(image_size, global_scale, blur=1.0 * blur, solarize=0.0)
        second = RandomView(image_size, global_scale, blur=0.1 * blur, solarize=0.2)
        local = RandomView(local_size, local_scale, blur=0.5 * blur, solarize=0.0)
        super().__init__(first, second, *[local] * local_number)
