"""The views are the papers': drawn as torchvision draws them, and equal to its to rounding."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from datamodules.seeding import seeded
from datamodules.transforms import operators
from datamodules.transforms.augmentations import RandomView, View
from datamodules.transforms.barlow_twins import BarlowTwinsViews
from datamodules.transforms.dino import MultiCropViews
from datamodules.transforms.lejepa import LeJEPAViews

SIZE = (80, 60)


def picture(width: int = SIZE[0], height: int = SIZE[1]) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(2))


def made(views, image: Image.Image, *key: int) -> list[torch.Tensor]:
    with seeded(*key):
        drawn = views.draw(image.size)
    return [view.cut(np.array(image), image.size) for view in drawn]


class Blur(v2.Transform):
    """A blur that happens or not, from two draws."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, image):
        chance, position = torch.rand(2).tolist()
        sigma = 0.1 + position * 1.9
        return F.gaussian_blur(image, [25, 25], [sigma] * 2) if chance < self.p else image


def torchvisions(view: RandomView) -> v2.Compose:
    """The same recipe of torchvision's transforms, on real numbers from the crop on."""
    jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    return v2.Compose(
        [
            v2.RandomResizedCrop(
                view.side, view.crop.scale, interpolation=InterpolationMode.BICUBIC
            ),
            v2.RandomHorizontalFlip(0.5),
            v2.PILToTensor(),
            v2.ToDtype(torch.float64, scale=True),
            v2.RandomApply([jitter], p=0.8),
            v2.RandomGrayscale(0.2),
            Blur(view.blur),
            v2.RandomSolarize(128 / 255, p=view.solarize),
        ]
    )


@pytest.mark.parametrize("by", ["OpenCV", "Pillow"])
@pytest.mark.parametrize(("side", "scale"), [(32, (0.08, 1.0)), (24, (0.05, 0.4))])
def test_views_are_torchvisions(side, scale, by, monkeypatch):
    if by == "Pillow":
        monkeypatch.setattr(operators, "cv2", None)
    image, view, differences = picture(), RandomView(side, scale, blur=0.5, solarize=0.0), []
    reference = torchvisions(view)
    for key in range(120):
        with seeded(key):
            expected, next_draw = reference(image) * 255, torch.rand(1)
        with seeded(key):
            drawn = view.draw(image.size)
            assert torch.equal(torch.rand(1), next_draw)
        found = drawn.cut(np.array(image), image.size)
        assert (found.shape, found.dtype) == ((3, side, side), torch.uint8)
        differences.append((found - expected).abs().mean().item())
    assert np.mean(differences) < (0.6 if by == "OpenCV" else 1.2)  # grey levels
    assert max(differences) < (1.5 if by == "OpenCV" else 5)


def test_solarized_views_are_torchvisions():
    # Where rounding crosses the threshold nothing can be compared; elsewhere all can.
    view = RandomView(32, (0.08, 1.0), blur=0.0, solarize=0.5)
    view.jittered = 0.0
    reference = torchvisions(view)
    reference.transforms[4].p = 0.0
    for key in range(20):
        with seeded(key):
            expected = reference(picture()) * 255
        with seeded(key):
            found = view.draw(SIZE).cut(np.array(picture()), SIZE)
        assert ((found - expected).abs() > 1.5).float().mean() < 0.02


def test_the_pipelines_have_the_published_parameters():
    barlow = BarlowTwinsViews(224)
    dino = MultiCropViews(224, 96, 8, (0.25, 1.0), (0.05, 0.25))
    lejepa = LeJEPAViews(128, 4, (0.08, 1.0))
    found = [
        (view.side, view.crop.scale, view.blur, view.solarize)
        for view in (*barlow.views, *dino.views[:3], lejepa.views[0])
    ]
    assert found == [
        (224, (0.08, 1.0), 1.0, 0.0),
        (224, (0.08, 1.0), 0.1, 0.2),
        (224, (0.25, 1.0), 1.0, 0.0),
        (224, (0.25, 1.0), 0.1, 0.2),
        (96, (0.05, 0.25), 0.5, 0.0),
        (128, (0.08, 1.0), 0.5, 0.2),
    ]
    assert dino.sizes == (224, 224) + (96,) * 8
    assert len(dino.draw(SIZE)) == 10


@pytest.fixture(scope="module")
def drawn() -> list[View]:
    view = RandomView(32, (0.08, 1.0), blur=0.3, solarize=0.2)
    with seeded(0):
        return [view.draw((4000, 3000)) for _ in range(4000)]


def steps(view: View) -> list[tuple[str, float | None]]:
    """What is changed, in order, and by how much."""
    return [
        (each.func.__name__, next(iter(each.keywords.values())))
        if isinstance(each, partial)
        else (each.__name__, None)
        for each in view.changes
    ]


def assert_uniform(values: list[float], low: float, high: float) -> None:
    """By Kolmogorov and Smirnov, at a level of 0.001."""
    places = (np.sort(values) - low) / (high - low)
    assert places[0] >= 0
    assert places[-1] <= 1
    expected = (np.arange(len(values)) + 0.5) / len(values)
    assert np.abs(places - expected).max() < 1.95 / np.sqrt(len(values))


def test_all_happens_as_often_as_asked(drawn):
    jittered = [view for view in drawn if "hue" in dict(steps(view))]
    counts = Counter(name for view in drawn for name, factor in steps(view) if factor is None)
    counts["blurred"] = sum("blurred" in dict(steps(view)) for view in drawn)
    counts["grey"] = sum(("saturation", 0.0) in steps(view) for view in drawn)
    counts["mirrored"] = sum(view.mirrored for view in drawn)
    counts["jittered"] = len(jittered)
    expected = {"solarized": 0.2, "blurred": 0.3, "grey": 0.2, "mirrored": 0.5, "jittered": 0.8}
    for name, p in expected.items():
        assert abs(counts[name] - 4000 * p) < 3.3 * np.sqrt(4000 * p * (1 - p)), name
    orders = Counter(tuple(name for name, _ in steps(view)[:4]) for view in jittered)
    assert len(orders) == 24
    assert sum((n - len(jittered) / 24) ** 2 for n in orders.values()) < 49.7 * len(jittered) / 24


def test_all_that_is_drawn_is_spread_evenly(drawn):
    for name, low, high in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0.6, 1.4),
        ("hue", -0.1, 0.1),
        ("blurred", 0.1, 2.0),
    ):
        assert_uniform([dict(steps(v))[name] for v in drawn if name in dict(steps(v))], low, high)
    saturations = [f for v in drawn for name, f in steps(v) if name == "saturation" and f]
    assert_uniform(saturations, 0.8, 1.2)
    # Crops of extreme shape and more than three quarters of the image do not fit and are redrawn.
    areas = [view.box[2] * view.box[3] / 12e6 for view in drawn]
    assert_uniform([area for area in areas if area < 0.5], 0.08, 0.5)
    small = [
        view.box[2] / view.box[3] for view, area in zip(drawn, areas, strict=True) if area < 0.5
    ]
    assert_uniform(np.log(small).tolist(), np.log(3 / 4) - 1e-3, np.log(4 / 3) + 1e-3)
    room = [view.box[0] / (4000 - view.box[2]) for view in drawn if view.box[2] < 3500]
    assert_uniform(room, 0, 1)


def test_any_number_of_views_drawn_alike():
    views = LeJEPAViews(32, 3, (0.2, 0.9), blur=False)
    assert views.sizes == (32, 32, 32)
    view = views.views[0]
    assert (view.crop.scale, view.blur, view.solarize) == ((0.2, 0.9), 0.0, 0.2)
    found = made(views, picture(), 1)
    assert [view.shape for view in found] == [(3, 32, 32)] * 3
    assert not torch.equal(found[0], found[1])


def test_two_different_uint8_views_that_the_seed_determines():
    views = BarlowTwinsViews(32)
    first, second = made(views, picture(), 1)
    again, _ = made(views, picture(), 1)
    assert first.shape == second.shape == (3, 32, 32)
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
