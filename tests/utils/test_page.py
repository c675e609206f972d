"""Pictures keep their pixels as long as the page stays small, and templates escape."""

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from tests.pages import pixels
from utils import page
from utils.page import data_uri, fit, picture_uri, render, with_code, with_whole_options


def noise(height: int, width: int, channels: int = 3) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, channels), np.uint8))


@pytest.mark.parametrize("channels", [3, 4])
def test_pixels_do_not_change(channels, tmp_path):
    image = noise(40, 1700, channels)
    image.save(tmp_path / "noise.png")
    back = pixels(picture_uri(tmp_path / "noise.png"))
    assert np.array_equal(back, np.asarray(image))


def test_only_wider_pictures_are_resampled():
    image = noise(50, 100)
    assert pixels(data_uri(image, 40)).shape == (20, 40, 3)
    assert np.array_equal(pixels(data_uri(image, 100)), np.asarray(image))


def test_a_picture_too_tall_for_webp_keeps_its_pixels_too():
    image = noise(17_000, 2)
    uri = data_uri(image)
    assert uri.startswith("data:image/png;")
    assert np.array_equal(pixels(uri), np.asarray(image))


def test_the_first_page_that_is_small_enough_is_taken(monkeypatch):
    monkeypatch.setattr(page, "MAX_BYTES", 1000)
    assert fit(lambda width: "x" * (width or 5000)) == "x" * 800
    assert fit(lambda width: "x" * 1000 if width is None else "y") == "x" * 1000
    # Bytes count, not letters.
    assert fit(lambda width: "é" * (width or 5000)) == "é" * 400
    # Better a page that is too large than none.
    assert fit(lambda width: "x" * (width or 5000) * 10) == "x" * 2000


PLAIN = {"title": "a", "picture_width": None, "numbers": [], "command": ""}


def test_a_value_that_is_not_given_is_an_error():
    with pytest.raises(UndefinedError, match="title"):
        render("base.html", **{name: PLAIN[name] for name in PLAIN if name != "title"})


def test_a_note_says_that_pictures_were_resampled():
    assert "resampled" not in render("base.html", **PLAIN)
    assert "wider than 800 pixels were resampled" in render(
        "base.html", **PLAIN | {"picture_width": 800}
    )


def test_what_stands_between_backticks_is_code_and_the_rest_is_escaped():
    found = with_code("`a<b>` & `c`, <i>`")
    assert found == "<code>a&lt;b&gt;</code> &amp; <code>c</code>, &lt;i&gt;`"


def test_the_dashes_of_an_option_stay_with_its_name():
    found = with_whole_options("a lower --optim.lr, 5 -- 6 & <b>")
    assert found == "a lower <span class=option>--optim</span>.lr, 5 -- 6 &amp; &lt;b&gt;"
