"""A list of classes keeps what belongs together, and a survey finds what masks tell apart."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.masks.class_list import ClassList, read_class_list
from datamodules.masks.meanings import DeclaredMeanings, ForeignPixelsError, in_words
from datamodules.masks.survey import advice, proposal, survey

COLOURS = {"soil": 0x112233, "crop": 0x00FF00, "weed": 0xFF0000, "stone": 0x0000FF}


@pytest.mark.parametrize("background", [None, "soil"])
@pytest.mark.parametrize("ignored", [(), ("crop",), ("weed", "stone")])
def test_every_name_keeps_its_colour_and_its_value(tmp_path, background, ignored):
    for names in permutations(COLOURS):
        file = tmp_path / "classes.yaml"
        hexes = [f"#{COLOURS[name]:06x}" for name in names]
        lines = [f"names: {list(names)}", f"colours: {hexes}", f"ignore: {list(ignored)}"]
        file.write_text("\n".join([*lines, *([f"background: {background}"] if background else [])]))
        found = read_class_list(file)
        kept = [name for name in names if name not in ignored]
        if background:
            kept = [background, *(name for name in kept if name != background)]
        assert found.colours == tuple(COLOURS[name] for name in kept)
        assert found.names == tuple("background" if name == background else name for name in kept)
        assert found.written == dict(enumerate(names))
        expected = [255 if name in ignored else kept.index(name) for name in names]
        codes = np.array([[COLOURS[name] for name in names]])
        pixels = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], -1)
        masks = {
            "P": Image.fromarray(np.arange(4, dtype=np.uint8)[None]),
            "RGB": Image.fromarray(pixels.astype(np.uint8)),
        }
        for mask in masks.values():
            assert found.meanings.labels(mask).tolist() == [expected]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], ""),
        ([3], "3"),
        ([3, 4], "3, 4"),
        ([3, 4, 5], "3 to 5"),
        ([0, 2, 3, 4, 5, 9, 10], "0, 2 to 5, 9, 10"),
        ([1, 3, 5, 7, 9, 11], "1, 3, 5, 7, 9 …"),
    ],
)
def test_values_are_named_in_runs(values, words):
    assert in_words(values) == words


@pytest.mark.parametrize("grey", [False, True])
def test_indices_of_one_colour_are_told_apart_by_themselves(tmp_path, grey):
    """As of a program that writes indices and leaves the palette as it is."""

    def mask(name: str, *values: int) -> Path:
        image = Image.fromarray(np.array([values], np.uint8))
        if not grey:
            image.putpalette([0, 0, 0] * 256)
        image.save(tmp_path / name)
        return tmp_path / name

    found = survey([mask("a.png", 0, 1, 2), mask("b.png", 1, 1), mask("c.png", 0, 2)])
    assert not found.by_colour
    names = [line.split("#")[0].strip() for line in proposal(found).splitlines()[2:5]]
    assert names == ["- background", "- class 1", "- class 2"]


@pytest.mark.parametrize("pixels", [[[0, 3, 7]], [[[0, 0, 0], [0, 9, 0]]]])
def test_what_is_advised_names_the_list_which_may_not_be_there(tmp_path, pixels):
    file = tmp_path / "mask.png"
    Image.fromarray(np.array(pixels, np.uint8)).save(file)
    said = advice(survey([file]), ClassList.of_names(("a", "b", "c", "d")), [file])
    assert "in classes.yaml" in said


def test_palettes_of_another_order_are_told_apart_by_their_colours(tmp_path):
    files = []
    for number, order in enumerate(((0x000000, 0xFF0000), (0xFF0000, 0x000000))):
        image = Image.fromarray(np.array([[0, 1, 1]], np.uint8))
        image.putpalette([code >> shift & 255 for code in order for shift in (16, 8, 0)])
        files.append(tmp_path / f"{number}.png")
        image.save(files[-1])
    found = survey(files)
    assert found.by_colour
    assert dict(found.found) == {0x000000: 3, 0xFF0000: 3}


def test_a_mask_that_has_none_of_the_colours_is_told_by_its_values():
    meanings = DeclaredMeanings({0: 0, 1: 1}, {0xFF0000: 0, 0x00FF00: 1})
    mask = Image.fromarray(np.array([[0, 1, 7, 9]], np.uint8))
    with pytest.raises(ForeignPixelsError, match=r"values .* \(50 % of its pixels\): 7, 9"):
        meanings.labels(mask)
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [1, 1, 1], [1, 1, 1]]], np.uint8)
    with pytest.raises(ForeignPixelsError, match=r"1 colour .* \(50 % of its pixels\): #010101"):
        meanings.labels(Image.fromarray(pixels))


@pytest.mark.parametrize(
    ("colours", "expected"),
    [
        ({}, [0, 1]),
        ({0x0000FF: 0, 0x000000: 1}, [0, 1]),
        ({0xFFFFFF: 0, 0x0000FF: 1}, [0, 1]),
        ({0xFFFFFF: 0, 0x000000: 1}, [1, 0]),
        ({0x000000: 0, 0xFF0000: 1, 0xFFFFFF: 2}, [0, 2]),
        ({0x000000: 0, 0xFF0000: 1, 0xFFFFFF: 255}, [0, 255]),
    ],
)
def test_masks_of_1_bit_are_read_alike_whatever_each_holds(colours, expected):
    """By colours where black and white are some, else by 0 and 1."""
    meanings = DeclaredMeanings({0: 0, 1: 1, 2: 2}, colours)
    for bits in ([False, True], [False, False], [True, True]):
        labels = meanings.labels(Image.fromarray(np.array([bits])))
        assert labels.tolist() == [[expected[bit] for bit in bits]]
