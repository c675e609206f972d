"""Random crops and colours, from which Barlow Twins, DINO and LeJEPA make their views.

A view is drawn first and cut later, so that a photograph is decoded only as large as needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from datamodules.transforms import operators
from datamodules.transforms.operators import Pixels

Change = Callable[[Pixels], Pixels]


@dataclass(frozen=True)
class View:
    """A view that has been drawn.

    Attributes:
        box: left, top, width and height in pixels of the whole image.
        side: in pixels.
        mirrored: left to right.
        changes: of colours and sharpness, in the order to apply them.
    """

    box: tuple[int, int, int, int]
    side: int
    mirrored: bool
    changes: tuple[Change, ...]

    @property
    def scale(self) -> float:
        """Side of the view over that of its box; the larger ratio of both sides."""
        return self.side / min(self.box[2:])

    def cut(self, pixels: Pixels, size: tuple[int, int]) -> Tensor:
        """Cuts the view, `(3, side, side)` uint8.

        Args:
            pixels: of the image, `(H, W, 3)`, possibly decoded smaller than its full size.
            size: width and height of the whole image.
        """
        left, top, width, height = self.box
        columns = _part(left, width, pixels.shape[1] / size[0])
        rows = _part(top, height, pixels.shape[0] / size[1])
        seen = operators.resized(pixels[rows, columns], self.side, self.side, "bicubic")
        for change in self.changes:
            seen = change(seen)
        return operators.channels_first(seen, self.mirrored)


class RandomView:
    """Draws a random crop in random colours.

    Barlow Twins and DINO jitter colours alike (BYOL's recipe) and differ in the other numbers.
    Random numbers are drawn as torchvision's transforms would draw them one after the other.

    Args:
        side: in pixels; smaller images are enlarged.
        scale: share of the image's area, smallest and largest.
        blur: probability of blurring.
        solarize: probability of solarizing.
    """

    grey = 0.2
    sigma = (0.1, 2.0)

    def __init__(self, side: int, scale: tuple[float, float], blur: float, solarize: float) -> None:
        self.side = side
        self.crop = v2.RandomResizedCrop(side, scale=scale)
        self.jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
        self.jittered = 0.8
        self.blur = blur
        self.solarize = solarize
        operators.say_if_slow()

    def draw(self, size: tuple[int, int]) -> View:
        """Draws a view of an image from torch's generator.

        Args:
            size: width and height in pixels.
        """
        crop = self.crop.make_params([blank(size)])
        mirrored = happens(0.5)
        changes: list[Change] = []
        if happens(self.jittered):
            drawn = self.jitter.make_params([])
            changes += colour_changes(drawn, drawn["fn_idx"].tolist())
        if happens(self.grey):
            changes.append(partial(operators.saturation, factor=0.0))
        chance, position = torch.rand(2).tolist()
        if chance < self.blur:
            low, high = self.sigma
            changes.append(partial(operators.blurred, sigma=low + position * (high - low)))
        if happens(self.solarize):
            changes.append(operators.solarized)
        box = (crop["left"], crop["top"], crop["width"], crop["height"])
        return View(box, self.side, mirrored, tuple(changes))


class Views:
    """Views of an image, one from each of `views`.

    Attributes:
        sizes: side of each view in pixels.
    """

    def __init__(self, *views: RandomView) -> None:
        self.views = views
        self.sizes = tuple(view.side for view in views)

    def draw(self, size: tuple[int, int]) -> list[View]:
        """Draws the views of an image of this width and height, from torch's generator."""
        return [view.draw(size) for view in self.views]


def colour_changes(drawn: dict[str, Any], order: Iterable[int]) -> list[Change]:
    """Returns the changes of colour that torchvision's transform has drawn.

    Args:
        drawn: the drawn parameters; a factor of None changes nothing.
        order: of 0 brightness, 1 contrast, 2 saturation and 3 hue, torchvision's numbers.
    """
    changes = (
        (operators.brightness, drawn["brightness_factor"]),
        (operators.contrast, drawn["contrast_factor"]),
        (operators.saturation, drawn["saturation_factor"]),
        (operators.hue, drawn["hue_factor"]),
    )
    chosen = [changes[number] for number in order]
    return [partial(change, factor=factor) for change, factor in chosen if factor is not None]


def _part(start: int, length: int, scale: float) -> slice:
    first = round(start * scale)
    return slice(first, max(first + 1, round((start + length) * scale)))


def happens(probability: float) -> bool:
    """Draws a yes or no; consumes a random number even if the outcome is certain."""
    return torch.rand(1).item() < probability


def blank(size: tuple[int, int]) -> Tensor:
    """Returns an image that takes no memory: torchvision asks only for its size."""
    return torch.empty(()).expand(3, size[1], size[0])
