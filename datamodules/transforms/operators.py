"""Operators on pixels that make views, by OpenCV where it is installed, else by Pillow.

Pixels are `(H, W, 3)` uint8. Formulas and rounding after every operator are those of torchvision's
transforms on PIL images. All changes of colour but that of hue are affine maps.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageStat
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.nn import functional as F

try:
    cv2: Any = import_module("cv2")
    # OpenCV's threads do not survive the fork of a worker, and every core has a worker.
    cv2.setNumThreads(0)
except (ImportError, AttributeError):  # AttributeError: what is left of one that was removed
    cv2 = None

Pixels = NDArray[np.uint8]

_IDENTITY = np.eye(3)
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


@cache
def say_if_slow() -> None:
    """Says, once, that OpenCV is missing."""
    if cv2 is None:
        rank_zero_warn(
            "OpenCV is not installed, or does not fit this NumPy: Pillow makes the views, which "
            "takes three times as long. pip install -U opencv-python-headless"
        )


def resized(pixels: Pixels, height: int, width: int, mode: str) -> Pixels:
    """Resizes with antialiasing, by torch's 8-bit kernels.

    Args:
        pixels: an image, or a slice of one.
        height: in pixels.
        width: in pixels.
        mode: `bilinear` or `bicubic`.
    """
    # Copied, because torch keeps the channels-last layout of contiguous pixels only.
    image = torch.from_numpy(np.array(pixels))[None].permute(0, 3, 1, 2)
    scaled = F.interpolate(image, (height, width), mode=mode, antialias=True)
    return scaled[0].permute(1, 2, 0).numpy()


def resized_part(pixels: Pixels, height: int, width: int, rows: slice, columns: slice) -> Pixels:
    """Returns a part of the image that a bilinear `resized` would give.

    Args:
        pixels: of the image.
        height: of the whole resized image, in pixels.
        width: of the whole resized image, in pixels.
        rows: the part's rows in it.
        columns: the part's columns in it.
    """
    if cv2 is None or height <= pixels.shape[0]:
        return resized(pixels, height, width, "bilinear")[rows, columns]
    # Enlarging needs no antialiasing: each pixel depends on four. Pixel centres lie at a half.
    down, across = pixels.shape[0] / height, pixels.shape[1] / width
    left, top = (columns.start + 0.5) * across - 0.5, (rows.start + 0.5) * down - 0.5
    return np.asarray(
        cv2.warpAffine(
            pixels,
            np.array([[across, 0, left], [0, down, top]]),
            (columns.stop - columns.start, rows.stop - rows.start),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
    )


def brightness(pixels: Pixels, factor: float) -> Pixels:
    """Blends with black."""
    return _mapped(pixels, factor * _IDENTITY)


def contrast(pixels: Pixels, factor: float) -> Pixels:
    """Blends with the mean grey of the image."""
    mean = cv2.mean(pixels)[:3] if cv2 else ImageStat.Stat(Image.fromarray(pixels)).mean
    return _mapped(pixels, factor * _IDENTITY, (1 - factor) * float(_LUMA @ mean))


def saturation(pixels: Pixels, factor: float) -> Pixels:
    """Blends every pixel with its grey; factor 0: greyscale."""
    return _mapped(pixels, factor * _IDENTITY + (1 - factor) * _LUMA)


def hue(pixels: Pixels, factor: float) -> Pixels:
    """Rotates the hue of HSV by a fraction of the circle, in steps of 1 / 256."""
    steps = round(factor * 256)
    if cv2:
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
        hsv[..., 0] += np.uint8(steps % 256)  # wraps around
        return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL))
    angle, *others = Image.fromarray(pixels).convert("HSV").split()
    turned = angle.point([(value + steps) % 256 for value in range(256)])
    return np.array(Image.merge("HSV", (turned, *others)).convert("RGB"))


def blurred(pixels: Pixels, sigma: float) -> Pixels:
    """Convolves with a Gaussian, cut at 3 sigma; the border is replicated."""
    if cv2 is None:  # Pillow approximates it by three box filters
        return np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)))
    kernel = cv2.getGaussianKernel(2 * round(3 * sigma) + 1, sigma, cv2.CV_32F)
    # Takes half the time of cv2.GaussianBlur, and is the same up to rounding.
    edge = cv2.BORDER_REPLICATE
    return np.asarray(cv2.sepFilter2D(pixels, -1, kernel, kernel, borderType=edge))


def solarized(pixels: Pixels) -> Pixels:
    """Inverts values from 128 on: the result is the smaller of a value and its inverse."""
    return np.minimum(pixels, ~pixels)


def channels_first(pixels: Pixels, mirrored: bool = False) -> Tensor:
    """Returns a tensor `(3, H, W)`, mirrored if asked for."""
    if cv2:
        return torch.from_numpy(np.stack(cv2.split(cv2.flip(pixels, 1) if mirrored else pixels)))
    seen = pixels[:, ::-1] if mirrored else pixels
    return torch.from_numpy(np.ascontiguousarray(seen.transpose(2, 0, 1)))


def _mapped(pixels: Pixels, matrix: NDArray[np.float64], offset: float = 0.0) -> Pixels:
    rows = np.full((3, 4), offset)
    rows[:, :3] = matrix
    if cv2:
        return np.asarray(cv2.transform(pixels, rows))
    return np.array(Image.fromarray(pixels).convert("RGB", tuple(rows.ravel())))
