"""The two views of Barlow Twins (Zbontar et al. 2021, section 2 and official code)."""

from __future__ import annotations

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2


class PILGaussianBlur:
    """Gaussian blur of random radius with probability p, by Pillow.

    torchvision convolves with a full k x k kernel and takes 70 times as long on a CPU; Pillow's
    is also what the official code uses.

    Args:
        p: probability.
        sigma: range of the radius in pixels.
    """

    def __init__(self, p: float, sigma: tuple[float, float] = (0.1, 2.0)) -> None:
        self.p = p
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        """Blurs, or not."""
        chance, position = torch.rand(2).tolist()
        if chance >= self.p:
            return image
        low, high = self.sigma
        return image.filter(ImageFilter.GaussianBlur(low + position * (high - low)))


class BarlowTwinsViews:
    """Two random views of an image, `(3, size, size)` uint8 each, cropped from the original.

    Args:
        image_size: side of the views in pixels.
    """

    def __init__(self, image_size: int) -> None:
        self.first = _pipeline(image_size, blur=1.0, solarize=0.0)
        self.second = _pipeline(image_size, blur=0.1, solarize=0.2)

    def __call__(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """Draws both views from torch's generator."""
        return self.first(image), self.second(image)


def _pipeline(image_size: int, blur: float, solarize: float) -> v2.Compose:
    jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    return v2.Compose(
        [
            v2.RandomResizedCrop(
                image_size, scale=(0.08, 1.0), interpolation=InterpolationMode.BICUBIC
            ),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([jitter], p=0.8),
            v2.RandomGrayscale(0.2),
            PILGaussianBlur(blur),
            v2.RandomSolarize(128, p=solarize),
            v2.PILToTensor(),
        ]
    )
