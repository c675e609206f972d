"""metrics.csv holds what was logged, whenever it is read and however the writing ended."""

import csv
from pathlib import Path

import pytest

from tests.conftest import files_at_most
from utils.metrics_file import MetricsFile, last_values, read_metrics


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "metrics.csv"


def logged(file: Path, steps: int = 5) -> MetricsFile:
    metrics = MetricsFile(file)
    for step in range(steps):
        metrics.add(step, {"train/loss": 1 / (step + 1), "train/lr": 0.1})
    metrics.write()
    return metrics


def lines(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def test_metrics_survive_and_forget(file):
    metrics = MetricsFile(file)
    metrics.add(0, {"train/loss": 1.5})
    metrics.add(3, {"val/loss": 2.5, "lr": 0.1})
    metrics.add(3, {"train/loss": 0.5})
    metrics.write()
    again = MetricsFile(file)
    assert again.rows == {
        0: {"train/loss": 1.5},
        3: {"val/loss": 2.5, "train/loss": 0.5, "lr": 0.1},
    }
    again.forget_from(3)
    again.write()
    assert list(read_metrics(file)) == [0]
    assert file.read_text().splitlines()[0] == "step,train/loss"
    again.add(2, {"train/loss": 0.5})
    again.add(1, {"train/loss": 0.25})
    again.write()
    assert [line["step"] for line in lines(file)] == ["0", "1", "2"]
    assert last_values(again.rows) == {"train/loss": 0.5}
    again.forget_from(1)
    again.write()
    assert list(read_metrics(file)) == [0]


def test_what_is_new_is_added_and_a_step_that_goes_on_keeps_all(file):
    metrics = logged(file)
    before = file.read_bytes()
    metrics.write()
    assert file.read_bytes() == before
    metrics.add(4, {"train/lr": 0.2})
    metrics.add(5, {"train/loss": 0.125})
    metrics.write()
    assert file.read_bytes().startswith(before)
    assert [line["step"] for line in lines(file)] == ["0", "1", "2", "3", "4", "4", "5"]
    assert read_metrics(file) == metrics.rows
    assert metrics.rows[4] == {"train/loss": 0.2, "train/lr": 0.2}
    metrics.rewrite()
    assert [line["step"] for line in lines(file)] == ["0", "1", "2", "3", "4", "5"]
    assert read_metrics(file) == metrics.rows


def test_a_new_column_stands_in_all_rows(file):
    metrics = logged(file)
    metrics.add(5, {"val/miou": 0.5})
    metrics.write()
    assert [line["val/miou"] for line in lines(file)] == [""] * 5 + ["0.5"]
    assert read_metrics(file) == metrics.rows


@pytest.mark.parametrize("left", [None, "", "step,x\n1,2\n"])
def test_a_file_that_somebody_changed_is_written_anew(file, left):
    metrics = logged(file)
    if left is None:
        file.unlink()
    else:
        file.write_text(left)
    metrics.add(5, {"train/loss": 0.5})
    metrics.write()
    assert read_metrics(file) == metrics.rows


def test_every_cut_of_what_was_added_leaves_what_was_there(file):
    metrics = logged(file)
    before, known = file.read_bytes(), read_metrics(file)
    metrics.add(4, {"train/lr": 0.25})
    metrics.add(5, {"train/loss": 0.125})
    metrics.write()
    after = file.read_bytes()
    for size in range(len(before), len(after) + 1):
        file.write_bytes(after[:size])
        found = read_metrics(file)
        assert {step: {**row, **found[step]} for step, row in known.items()} == {
            step: found[step] for step in known
        }
        assert found.get(5) in (None, metrics.rows[5])  # not a number that was cut
        resumed = MetricsFile(file)
        resumed.add(6, {"train/loss": 0.0})
        resumed.write()
        assert read_metrics(file) == found | {6: {"train/loss": 0.0}}


def test_a_full_disk_adds_nothing_and_space_again_adds_all(file):
    metrics = logged(file)
    before = file.read_bytes()
    for step in range(5, 50):
        metrics.add(step, {"train/loss": 0.5})
    with files_at_most(len(before) + 20), pytest.raises(OSError, match=r"metrics\.csv cannot be"):
        metrics.write()
    assert file.read_bytes() == before
    metrics.write()
    assert read_metrics(file) == metrics.rows
    assert len(metrics.rows) == 50


def test_a_full_disk_keeps_columns_and_rows_apart_that_come_and_go(file):
    metrics = logged(file)
    before = file.read_bytes()
    metrics.add(5, {"val/miou": 0.5})
    for forgotten in (None, 3):
        if forgotten is not None:
            metrics.forget_from(forgotten)
        with files_at_most(20), pytest.raises(OSError, match=r"metrics\.csv cannot be"):
            metrics.write()
        assert file.read_bytes() == before
        metrics.add(3, {"train/loss": 0.25})
        metrics.write()
        assert read_metrics(file) == metrics.rows
        before = file.read_bytes()
        metrics.add(4, {"train/loss": 0.125})


def test_old_names_of_metrics_are_read_as_the_new_ones(file):
    file.write_text("step,train/chance_level,train/rank_bound,train/loss\n0,10.5,7.9,200\n")
    expected = {"train/noise_floor": 10.5, "train/lower_bound": 7.9, "train/loss": 200}
    assert read_metrics(file) == {0: expected}
    file.write_text("step,train/chance_level\n0,6.9\n")  # DINO's
    assert read_metrics(file) == {0: {"train/chance_level": 6.9}}


def test_a_mark_of_the_encoding_hides_no_column(file):
    rows = logged(file).rows
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert MetricsFile(file).rows == rows


@pytest.mark.parametrize("cell", [b'"2', b"1e999", b"inf", b"\xff\xfe", b"", b"2,3"])
def test_a_damaged_cell_costs_its_line_and_the_damaged_file_stays(file, cell):
    rows = logged(file, steps=9000).rows  # far above what a csv.reader takes for one cell
    content = file.read_bytes().replace(b"\n2,", b"\n" + cell + b",")
    file.write_bytes(content)
    metrics = MetricsFile(file)
    metrics.add(9000, {"train/loss": 0.5})
    metrics.write()
    left = {step: row for step, row in rows.items() if step != 2}
    assert read_metrics(file) == metrics.rows == left | {9000: {"train/loss": 0.5}}
    assert file.with_name("metrics.damaged.csv").read_bytes() == content


def test_a_file_with_another_separator_stays_beside_the_new_one(file):
    logged(file)
    content = file.read_bytes().replace(b",", b";")
    file.write_bytes(content)
    metrics = MetricsFile(file)
    metrics.add(5, {"train/loss": 0.5})
    metrics.write()
    assert read_metrics(file) == {5: {"train/loss": 0.5}}
    metrics.rewrite()
    assert file.with_name("metrics.damaged.csv").read_bytes() == content


def test_a_file_that_is_whole_is_not_kept_twice(file):
    logged(file)
    again = MetricsFile(file)
    again.rewrite()
    assert list(file.parent.iterdir()) == [file]


def test_names_with_commas_and_quotes_are_read_as_written(file):
    metrics = MetricsFile(file)
    metrics.add(0, {'val/iou/table, "dining"': 0.5})
    metrics.write()
    assert read_metrics(file) == metrics.rows
