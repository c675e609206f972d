"""A figure is drawn once, as matplotlib would save it."""

import io

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from utils import figures


def figure() -> Figure:
    drawn, axes = figures.grid(2, 3, title="one $ and\nanother line")
    for axis in axes.flat[:-1]:
        figures.show_image(axis, np.random.default_rng(0).random((5, 7)))
        axis.set_title("above")
    axes[1, 2].plot([1, 3, 2], label="name")
    drawn.legend(loc="outside lower center")
    return drawn


def test_a_picture_is_what_matplotlib_saves():
    drawn, file = figures.picture(figure()), io.BytesIO()
    figure().savefig(file, format="png")
    figures.close_all()
    np.testing.assert_array_equal(drawn.pixels, np.asarray(Image.open(file))[..., :3])
    np.testing.assert_array_equal(drawn.pixels, np.asarray(Image.open(io.BytesIO(drawn.png))))
    assert drawn.title == "one \\$ and\nanother line"
