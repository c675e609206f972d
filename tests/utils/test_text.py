import pytest

from utils.text import (
    best_and_worst,
    count,
    did_you_mean,
    format_result,
    format_value,
    in_units,
    markdown,
    one_line,
    percent,
    printable,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00015625, "0.00015625"),
        (1.23456789, "1.2346"),
        (12345, "12345"),
        (True, "true"),
        (None, "null"),
        ("null", "null"),
        ([1, "Größe"], '[1, "Größe"]'),
        (float("nan"), "nan"),
    ],
)
def test_values_are_spelt_as_in_json_without_quotes(value, text):
    assert format_value(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123456, "0.1235"), (12345, "12345"), ("finished", "finished"), (None, "–"), (0.0, "0")],
)
def test_results_have_four_digits_and_a_dash_where_there_is_none(value, text):
    assert format_result(value) == text


def test_what_stands_for_a_missing_result_can_be_chosen():
    assert format_result(None, missing="") == ""
    assert format_result(0, missing="") == "0"


def test_no_class_is_among_the_best_and_the_worst():
    classes = [(letter, 0.9 - number / 10) for number, letter in enumerate("abcdefghi")]
    assert best_and_worst(classes[:2]) == ["By class: a 0.90, b 0.80"]
    (line,) = best_and_worst(classes[:8])
    assert line.count(",") == 7
    assert best_and_worst(classes) == [
        "Best:  a 0.90, b 0.80, c 0.70, d 0.60",
        "Worst: i 0.10, h 0.20, g 0.30, f 0.40",
    ]
    assert best_and_worst([]) == []


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 "),
        (999, "999 "),
        (1234, "1.2 k"),
        (9_940, "9.9 k"),
        (9_960, "10 k"),
        (45_678_901, "46 M"),
        (999e6, "999 M"),
        (2.5e9, "2.5 G"),
        (3.3e15, "3300 T"),
    ],
)
def test_large_numbers_have_two_digits_and_a_prefix(number, text):
    assert in_units(number) == text


def test_a_sentence_is_one_line_that_can_be_read():
    assert one_line("rows: ---\n: no  such\tsetting.") == "rows: --- : no such setting."
    assert one_line("x" * 1200) == "x" * 1200
    long = one_line("begins " + "y" * 9000 + " ends")
    assert long.startswith("begins y")
    assert long.endswith("y ends")
    assert len(long) < 1300


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1, "1 step"),
        (0, "0 steps"),
        (2028, "2,028 steps"),
        (1.0, "1 step"),
        (0.9999, "1 step"),
        (2.5, "2.5 steps"),
    ],
)
def test_things_are_counted_in_words(number, text):
    assert count(number, "step") == text


@pytest.mark.parametrize(
    ("part", "text"), [(0.0324, "0.032 %"), (4.71, "4.7 %"), (99.6, "100 %"), (0, "0 %")]
)
def test_shares_have_two_digits(part, text):
    assert percent(2 * part, 200) == text


def test_the_nearest_word_is_meant_whatever_its_case():
    assert did_you_mean("voc", ["VOC", "shapes"]) == " Did you mean VOC?"
    assert did_you_mean("cityscapes", ["VOC", "shapes"], alike=0.9) == ""


def test_a_table_keeps_bars_in_its_cells():
    assert markdown(["a"], [["b|c"]]) == "| a |\n| --- |\n| b\\|c |"


def test_classes_are_counted_too():
    assert [count(number, "class") for number in (1, 2)] == ["1 class", "2 classes"]


def test_a_file_name_is_spelt_in_one_line():
    assert printable("é \U0001f331/a\nb\x1b[31m\u2028\udce9.jpg") == (
        "é \U0001f331/a\\nb\\x1b[31m\\u2028\\xe9.jpg"
    )
