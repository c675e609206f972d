"""metrics.csv: every scalar, a row a step."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from utils.files import append, name_damaged, write_atomically
from utils.text import count


class MetricsFile:
    """Scalars by step, and the file they are kept in.

    What is new is added at its end, as long as it has the columns: a step that goes on has another
    line then, the last of which holds all. `rewrite` makes one line of each step.

    Args:
        file: read if it is there.

    Attributes:
        rows: scalars by step.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows, self._whole = _read(file)
        self._columns: list[str] = []  # of the file, as far as it is ours
        self._size = 0  # of the file in bytes
        self._names = _names(self.rows)
        self._changed: set[int] = set()

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds scalars to the row of a step."""
        self.rows.setdefault(step, {}).update(scalars)
        self._names.update(scalars)
        self._changed.add(step)

    def forget_from(self, step: int) -> None:
        """Drops rows from a step on; the file has them until it is rewritten."""
        self.rows = {key: row for key, row in self.rows.items() if key < step}
        self._names = _names(self.rows)
        self._columns = []

    def write(self) -> None:
        """Writes what is new.

        Raises:
            OSError: it cannot be written.
        """
        as_left = self.file.exists() and self.file.stat().st_size == self._size
        if not as_left or self._columns != ["step", *sorted(self._names)]:
            self.rewrite()
        elif self._changed:
            append(self.file, self._lines(self._columns, self._changed))
            self._note()

    def rewrite(self) -> None:
        """Replaces the file: rows in the order of their steps, columns in that of the alphabet.

        One that could not be read in full stays beside it, as `metrics.damaged.csv`.

        Raises:
            OSError: it cannot be written.
        """
        if not self._whole:
            write_atomically(self.file.with_suffix(".damaged.csv"), self.file.read_bytes())
            self._whole = True
        columns = ["step", *sorted(self._names)]
        header = io.StringIO()
        csv.writer(header).writerow(columns)
        write_atomically(self.file, header.getvalue() + self._lines(columns, self.rows))
        self._columns = columns  # only now: of a full disk the file still has others
        self._note()

    def _lines(self, columns: Sequence[str], steps: Iterable[int]) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writerows({"step": step, **self.rows[step]} for step in sorted(steps))
        return text.getvalue()

    def _note(self) -> None:
        self._size, self._changed = self.file.stat().st_size, set()


def _names(rows: Mapping[int, Mapping[str, float]]) -> set[str]:
    return {name for row in rows.values() for name in row}


def last_values(rows: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Returns the last value of each scalar."""
    return {name: value for _, row in sorted(rows.items()) for name, value in row.items()}


# What earlier versions called the two numbers that Barlow Twins' loss is read against. DINO has a
# chance level as well, and keeps it.
_RENAMED = {"chance_level": "noise_floor", "rank_bound": "lower_bound"}


def read_metrics(file: Path) -> dict[int, dict[str, float]]:
    """Reads metrics.csv: scalars by step; empty when there is no file.

    Rows that cannot be read are left out, counted and said.
    """
    return _read(file)[0]


def _read(file: Path) -> tuple[dict[int, dict[str, float]], bool]:
    """Returns scalars by step, and whether all of the file could be read."""
    if not file.exists():
        return {}, True
    if not file.is_file():
        name_damaged(file, "it is no file")
        return {}, True
    # Excel begins with a mark of the encoding.
    header, *lines = file.read_text("utf-8-sig", errors="replace").split("\n")
    columns: list[str] = []
    with suppress(csv.Error):
        columns = next(csv.reader([header]), [])
    renamed = {
        f"{split}/{old}": f"{split}/{new}"
        for split in ("train", "val")
        for old, new in _RENAMED.items()
        if f"{split}/rank_bound" in columns
    }
    names = [renamed.get(name, name) for name in columns]
    rows: dict[int, dict[str, float]] = {}
    lost = sum(map(bool, lines))
    for line in lines[:-1]:  # a cut line says nothing
        # Numbers alone, each line by itself: to a csv.reader a stray quote begins a text of many.
        with suppress(ValueError, OverflowError):
            row = {
                name: float(cell) for name, cell in zip(names, line.split(","), strict=True) if cell
            }
            rows.setdefault(int(row.pop("step", math.nan)), {}).update(row)
            lost -= 1
    if "step" not in columns:
        name_damaged(file, "it has no column `step`")
    elif lost:
        name_damaged(file, f"{count(lost, 'row')} cannot be read, {len(rows)} can")
    return rows, "step" in columns and not lost
