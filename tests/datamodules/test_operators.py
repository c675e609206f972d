"""Operators do what torchvision's do on real numbers, and round once; with OpenCV and without."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from datamodules.transforms import operators
from datamodules.transforms.barlow_twins import BarlowTwinsViews


@pytest.fixture(params=["OpenCV", "Pillow"])
def by(request, monkeypatch) -> str:
    if request.param == "Pillow":
        monkeypatch.setattr(operators, "cv2", None)
    else:
        pytest.importorskip("cv2")
    return request.param


def picture(height: int = 60, width: int = 80) -> np.ndarray:
    """All colours, and edges."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    smooth = np.array(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2)), float)
    return ((smooth - smooth.mean()) * 4 + 128).clip(0, 255).astype(np.uint8)


def on_real_numbers(operator, pixels: np.ndarray, *arguments) -> np.ndarray:
    image = torch.from_numpy(pixels).permute(2, 0, 1).double() / 255
    return operator(image, *arguments).permute(1, 2, 0).numpy() * 255


def assert_near(found: np.ndarray, expected: np.ndarray, mean: float, most: float) -> None:
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    difference = np.abs(found - expected)
    assert difference.mean() < mean
    assert difference.max() < most


@pytest.mark.parametrize("factor", [0.0, 0.53, 0.9, 1.47])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_affine_maps_of_colours(by, name, factor):
    pixels = picture()
    found = getattr(operators, name)(pixels, factor)
    expected = on_real_numbers(getattr(F, f"adjust_{name}"), pixels, factor)
    assert_near(found, expected, 0.35, 1.1)  # 0.25 of it and 0.5 from rounding, the rest OpenCV's


@pytest.mark.parametrize("factor", [-0.1, -0.013, 0.0, 0.05, 0.1, 0.5])
def test_hue(by, factor):
    pixels = picture()
    found = operators.hue(pixels, factor)
    # Hue, and Pillow's saturation, are of 8 bits: a pixel may be some levels off.
    assert_near(found, on_real_numbers(F.adjust_hue, pixels, factor), 1.0, 8)


@pytest.mark.parametrize("sigma", [0.1, 0.4, 1.0, 2.0])
def test_blur(by, sigma):
    pixels = picture()
    found = operators.blurred(pixels, sigma)
    offsets = np.arange(-12, 13)
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    padded = np.pad(pixels.astype(float), ((12, 12), (12, 12), (0, 0)), "edge")
    for axis in (0, 1):
        padded = np.apply_along_axis(np.convolve, axis, padded, kernel / kernel.sum(), "same")
    expected = padded[12:-12, 12:-12]
    if by == "OpenCV":
        assert_near(found, expected, 0.5, 2)
    else:  # box filters
        assert_near(found, expected, 3, 20)


def test_solarized_is_exact(by):
    pixels = picture()
    expected = np.array(F.solarize(Image.fromarray(pixels), 128))
    assert np.array_equal(operators.solarized(pixels), expected)


@pytest.mark.parametrize("mirrored", [False, True])
def test_channels_first(by, mirrored):
    pixels = picture()
    found = operators.channels_first(pixels, mirrored)
    assert found.is_contiguous()
    expected = F.pil_to_tensor(Image.fromarray(pixels))
    assert torch.equal(found, expected.flip(-1) if mirrored else expected)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(24, 20), (17, 90), (100, 100)])
def test_resizing_is_antialiased_as_pillows(mode, size):
    pixels = picture()
    part = pixels[5:50, 7:60]
    found = operators.resized(part, *size, mode)
    expected = F.resize(Image.fromarray(part), list(size), InterpolationMode(mode))
    assert_near(found, np.array(expected, float), 0.3, 1.1)  # also rounds between the axes
    assert np.array_equal(pixels, picture())


@pytest.mark.parametrize("size", [(30, 40), (60, 80), (66, 88), (150, 200)])
def test_a_part_is_that_of_the_whole(by, size):
    pixels = picture()
    height, width = size
    whole = operators.resized(pixels, height, width, "bilinear")
    for rows in (slice(0, 20), slice(height - 21, height)):
        columns = slice(width // 3, width)
        found = operators.resized_part(pixels, height, width, rows, columns)
        difference = np.abs(found.astype(int) - whole[rows, columns])
        assert difference.mean() < (0.6 if by == "OpenCV" else 1e-9)
        assert difference.max() < 5  # OpenCV 4 rounds positions to 1/32


def test_without_opencv_it_is_said_once(monkeypatch, recwarn):
    monkeypatch.setattr(operators, "cv2", None)
    operators.say_if_slow.cache_clear()
    for _ in range(2):
        BarlowTwinsViews(16)
    (said,) = [str(each.message) for each in recwarn]
    assert "pip install -U opencv-python-headless" in said
    operators.say_if_slow.cache_clear()
    monkeypatch.setattr(operators, "cv2", object())
    recwarn.clear()
    BarlowTwinsViews(16)
    assert not recwarn
    operators.say_if_slow.cache_clear()


@pytest.mark.parametrize("found", [None, ModuleType("cv2")])
def test_an_opencv_that_is_missing_or_empty_is_noticed(monkeypatch, found):
    monkeypatch.setitem(sys.modules, "cv2", found)
    name = operators.__name__
    monkeypatch.delitem(sys.modules, name)
    again = __import__(name, fromlist=["cv2"])
    assert again.cv2 is None
    pixels = picture()
    assert np.array_equal(again.saturation(pixels, 1.0), pixels)
