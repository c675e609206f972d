"""A figure is drawn once, as matplotlib would save it."""

import io
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from utils import figures

ROOT = Path(__file__).parents[2]


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


def test_names_are_short_plain_and_in_the_legend():
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    assert figures.name(letters[:32]) == letters[:32]
    assert figures.name(letters) == f"{letters[:21]}…{letters[-10:]}"
    assert figures.name("_a$") == "\u200b_a\\$"


def test_of_correlations_1_is_red_and_0_cyan_blue():
    colours = [figures.CORRELATION(value)[:3] for value in (0.0, 0.5, 1.0)]
    assert colours[2][0] > 0.8 > 0.1 > max(colours[2][1:])
    assert colours[1][2] > 0.9
    assert 0.7 < colours[1][1] < 0.8
    assert colours[1][0] < 0.2
    assert max(colours[0]) < 0.3


def titled() -> Figure:
    drawn, axes = figures.panels(2, 2, "of the figure")
    for axis, unit in zip(axes.flat, (1, 1e-6, 1e6, 100), strict=True):
        axis.plot(np.array([-2.5, 1.0, 3.0]) * unit)
        axis.set(title="gradient cosine batch", xlabel="step")  # the longest of ours
    axes[1, 1].set_yscale("symlog")
    return drawn


@pytest.mark.parametrize("make", [figure, titled])
def test_titles_stand_where_matplotlib_looks_for_their_place(make):
    drawn = figures.picture(make()).pixels
    with matplotlib.rc_context({"axes.titley": None}):
        looked_for = figures.picture(make()).pixels
    figures.close_all()
    np.testing.assert_array_equal(drawn, looked_for)


def test_no_words_of_panels_lie_over_others_or_outside():
    title = "a title\nof two lines"
    drawn, axes = figures.panels(3, 2, title)
    for axis in axes.flat:
        axis.plot([0, 1000], [-0.00025, 0.0001])
        axis.set(title="name of a scalar", xlabel="step")
    drawn.canvas.draw()
    boxes = [axis.get_tightbbox() for axis in axes.flat]
    boxes.append(drawn._suptitle.get_window_extent())  # type: ignore[attr-defined]
    width, height = drawn.canvas.get_width_height()
    assert boxes[0].y0 > boxes[2].y1  # the second row stands below the first
    for number, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
        assert not any(box.overlaps(other) for other in boxes[:number])
    figures.close(drawn)


def test_pictures_of_a_sheet_fill_their_places_whatever_their_size():
    drawn, sheet = figures.sheet(2, 3, height=0.5, foot=0.25)
    small, large = np.zeros((2, 4)), np.ones((20, 40))
    shown = [sheet.show(0, 0, small), sheet.show(1, 2, large)]
    assert [image.get_extent() for image in shown] == [
        pytest.approx((0, 1, 0.5, 0)),
        pytest.approx((2.14, 3.14, 1.25, 0.75)),
    ]
    assert sheet.axis.axis() == pytest.approx((0, 3.14, 1.25, 0))
    figures.close(drawn)


@pytest.mark.parametrize("rows", [2, 10])
def test_pictures_of_a_sheet_leave_no_empty_paper_above_and_below(rows):
    drawn, sheet = figures.sheet(rows, 6, title="title", beside=0.5)
    for row in range(rows):
        sheet.left(row, "two\nlines")
    drawn.canvas.draw()
    box, height = sheet.axis.get_window_extent(), drawn.bbox.height
    for row, text in enumerate(sheet.axis.texts):  # in the middle of their pictures
        words, place = (
            text.get_window_extent(),
            sheet.axis.transData.transform((0, row * 1.07 + 0.5)),
        )
        assert (words.y0 + words.y1) / 2 == pytest.approx(place[1], abs=2)
    assert height - box.height < 0.75 * drawn.dpi  # inches, of which the title needs 0.3
    figures.close(drawn)


def test_a_caption_stands_right_below_the_pictures_however_tall_the_figure_is():
    drawn, sheet = figures.sheet(2, 3, foot=1.0)
    shown = sheet.show(1, 1, np.ones((2, 2)))
    sheet.caption("words")
    drawn.canvas.draw()
    picture, words = shown.get_window_extent(), sheet.axis.texts[0].get_window_extent()
    assert 0 < picture.y0 - words.y1 < 0.1 * picture.height
    assert words.x0 + words.x1 == pytest.approx(picture.x0 + picture.x1, abs=2)
    figures.close(drawn)


@pytest.mark.parametrize(
    ("given", "used"), [("module://matplotlib.backends.backend_svg",) * 2, ("TkAgg", "agg")]
)
def test_a_notebook_goes_on_showing_its_own_figures(given, used):
    code = "from utils import figures; import matplotlib; print(matplotlib.get_backend())"
    environment = {**os.environ, "MPLBACKEND": given}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip().lower() == used  # before 3.9 matplotlib wrote it otherwise
