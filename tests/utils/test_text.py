import pytest

from utils.text import format_result, format_value


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
