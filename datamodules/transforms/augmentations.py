"""What the views of Barlow Twins and DINO are made of."""

from __future__ import annotations

from PIL import Image, ImageFilter
from torch import rand
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
        chance, position = rand(2).tolist()
        if chance >= self.p:
            return image
        low, high = self.sigma
        return image.filter(ImageFilter.GaussianBlur(low + position * (high - low)))


def random_view(size: int, scale: tuple[float, float], blur: float, solarize: float) -> v2.Compose:
    """A random crop in random colours, `(3, size, size)` uint8.

    Both papers jitter colours alike (BYOL's recipe) and differ in the other numbers.

    Args:
        size: side in pixels; smaller images are enlarged.
        scale: share of the image's area, smallest and largest.
        blur: probability.
        solarize: probability.
    """
    jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([jitter], p=0.8),
            v2.RandomGrayscale(0.2),
            PILGaussianBlur(blur),
            v2.RandomSolarize(128, p=solarize),
            v2.PILToTensor(),
        ]
    )
