"""Windows, scales and mirror images: what is averaged, and that a single view is the plain one."""

import pytest
import torch
from torch import Tensor

from models.inference import Inference, starts


def images(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=generator)


def pixelwise(x: Tensor) -> Tensor:
    """Logits that depend on each pixel alone."""
    return torch.stack([x[:, 0] / 255.0, x[:, 1] / 128.0 - 1, x[:, 2] / 255.0 * 3], 1)


def local(x: Tensor) -> Tensor:
    """Logits that depend on where the window lies: its own row and column numbers."""
    height, width = x.shape[-2:]
    rows = torch.arange(height).view(1, 1, -1, 1).expand(len(x), 1, height, width)
    columns = torch.arange(width).view(1, 1, 1, -1).expand(len(x), 1, height, width)
    return torch.cat([rows, columns], 1).float()


def test_a_plain_view_is_untouched():
    x = images(20, 30)
    assert torch.equal(Inference()(local, x), local(x))
    assert Inference() == Inference(None, None, (1.0,), False)


@pytest.mark.parametrize("size", [(20, 30), (7, 30), (5, 6)])
def test_one_window_is_the_whole_image(size):
    x = images(*size)
    torch.testing.assert_close(Inference(window=30, stride=10)(local, x), local(x))


def test_windows_of_pixels_are_the_whole_image():
    x = images(23, 31)
    for window, stride in ((8, 8), (8, 5), (10, None), (1, 1)):
        torch.testing.assert_close(Inference(window, stride)(pixelwise, x), pixelwise(x))


def test_overlaps_are_averaged():
    x = images(9, 14)
    expected = torch.zeros(2, 2, 9, 14)
    for row in range(9):
        for column in range(14):
            found = [
                (row - top, column - left)
                for top in (0, 3)
                for left in (0, 4, 8)
                if top <= row < top + 6 and left <= column < left + 6
            ]
            expected[:, :, row, column] = torch.tensor(found).float().mean(0)
    # Rows: 0, then the one that ends with the image.
    torch.testing.assert_close(Inference(6, 4)(local, x), expected)


def test_windows_reach_every_pixel():
    assert starts(14, 6, 4) == [0, 4, 8]
    assert starts(9, 6, 4) == [0, 3]
    assert starts(6, 6, 4) == [0]
    assert starts(3, 6, 4) == [0]


def test_mirror_images_are_mirrored_back():
    x = images(8, 12)
    found = Inference(flip=True)(local, x)
    expected = (local(x).softmax(1) + local(x).flip(-1).softmax(1)) / 2
    torch.testing.assert_close(found.exp(), expected)
    # What does not care about left and right stays what it is.
    torch.testing.assert_close(Inference(flip=True)(pixelwise, x).exp(), pixelwise(x).softmax(1))
    mirrored = Inference(flip=True)(local, x.flip(-1))
    torch.testing.assert_close(mirrored.flip(-1), found)


def test_scales_are_averaged_as_probabilities():
    x = torch.full((1, 3, 16, 24), 90, dtype=torch.uint8)
    seen: list[tuple[int, ...]] = []

    def logits(view: Tensor) -> Tensor:
        seen.append(tuple(view.shape[-2:]))
        share = torch.full_like(view[:, 0].float(), float(len(seen)))
        return torch.stack([share, torch.zeros_like(share)], 1)

    found = Inference(scales=(0.5, 1.0), flip=True)(logits, x)
    assert seen == [(8, 12), (8, 12), (16, 24), (16, 24)]
    expected = sum(torch.tensor([float(n), 0.0]).softmax(0) for n in range(1, 5)) / 4
    torch.testing.assert_close(found.exp()[0, :, 3, 5], expected)
    assert found.shape == (1, 2, 16, 24)
