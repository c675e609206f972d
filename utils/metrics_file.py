"""metrics.csv: all scalars, one row per step."""

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

    `write` appends new rows, unless there are new columns. If a step gets further scalars, it is
    appended again: its last line has all of them. `rewrite` keeps one line per step.

    Args:
        file: read if it exists.

    Attributes:
        rows: scalars by step.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows, self._whole = _read(file)
        self._columns: list[str] = []  # of the file, if this process has written it
        self._size = 0  # of the file in bytes
        self._names = _names(self.rows)
        self._changed: set[int] = set()

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds scalars to the row of a step."""
        self.rows.setdefault(step, {}).update(scalars)
        self._names.update(scalars)
        self._changed.add(step)

    def forget_from(self, step: int) -> None:
        """Drops rows from a step on; the file keeps them until it is rewritten."""
        self.rows = {key: row for key, row in self.rows.items() if key < step}
        self._names = _names(self.rows)
        self._columns = []

    def write(self) -> None:
        """Writes new scalars.

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
        """Replaces the file: rows in the order of steps, columns in alphabetical order.

        A file that could not be read completely is kept as `metrics.damaged.csv`.

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
        self._columns = columns  # only now: after an error the file still has the old ones
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


# Names in earlier versions of the two reference values of Barlow Twins' loss. DINO still has a
# `chance level`.
_RENAMED = {"chance_level": "noise_floor", "rank_bound": "lower_bound"}


def read_metrics(file: Path) -> dict[int, dict[str, float]]:
    """Reads metrics.csv: scalars by step; empty if there is no file.

    Rows that cannot be read are left out, with a warning that says how many.
    """
    return _read(file)[0]


def _read(file: Path) -> tuple[dict[int, dict[str, float]], bool]:
    """Returns scalars by step, and whether the whole file could be read."""
    if not file.exists():
        return {}, True
    if not file.is_file():
        name_damaged(file, "it is no file")
        return {}, True
    # Excel writes a byte order mark.
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
    for line in lines[:-1]:  # the last line may be cut
        # Line by line: for csv.reader a stray quote would begin a text of many lines.
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
