"""The views are the paper's."""

import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode, v2

from datamodules.seeding import seeded
from datamodules.transforms.augmentations import PILGaussianBlur
from datamodules.transforms.barlow_twins import BarlowTwinsViews
from datamodules.transforms.lejepa import LeJEPAViews


def picture(width: int = 80, height: int = 60) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(2))


def test_both_pipelines_have_the_published_parameters():
    views = BarlowTwinsViews(224)
    for pipeline, blur, solarize in ((views.first, 1.0, 0.0), (views.second, 0.1, 0.2)):
        crop, flip, jitter, grey, blurring, solarizing, _ = pipeline.transforms
        assert (crop.size, crop.scale) == ((224, 224), (0.08, 1.0))
        assert crop.interpolation == InterpolationMode.BICUBIC
        assert (flip.p, jitter.p, grey.p) == (0.5, 0.8, 0.2)
        colour = jitter.transforms[0]
        assert tuple(colour.brightness) == tuple(colour.contrast) == (0.6, 1.4)
        assert (tuple(colour.saturation), tuple(colour.hue)) == ((0.8, 1.2), (-0.1, 0.1))
        assert (blurring.p, blurring.sigma) == (blur, (0.1, 2.0))
        assert (solarizing.p, solarizing.threshold) == (solarize, 128)
        assert isinstance(pipeline, v2.Compose)


def test_any_number_of_views_drawn_alike():
    views = LeJEPAViews(32, 3, (0.2, 0.9), blur=False)
    assert views.sizes == (32, 32, 32)
    crop, *_, blurring, solarizing, _ = views.view.transforms
    assert (crop.scale, blurring.p, solarizing.p) == ((0.2, 0.9), 0.0, 0.2)
    with seeded(1):
        found = views(picture())
    assert [view.shape for view in found] == [(3, 32, 32)] * 3
    assert not torch.equal(found[0], found[1])


def test_two_different_uint8_views_that_the_seed_determines():
    views = BarlowTwinsViews(32)
    with seeded(1):
        first, second = views(picture())
    with seeded(1):
        again, _ = views(picture())
    assert first.shape == second.shape == (3, 32, 32)
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_blur_is_pillows_and_happens_as_often_as_asked():
    image = picture()
    with seeded(0):
        blurred = sum(
            not np.array_equal(PILGaussianBlur(0.3, (1.0, 1.0))(image), image) for _ in range(400)
        )
    assert 90 < blurred < 150
    with seeded(0):
        always = PILGaussianBlur(1.0, (1.5, 1.5))(image)
    assert np.array_equal(always, image.filter(ImageFilter.GaussianBlur(1.5)))
