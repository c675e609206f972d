"""Values as text for tables."""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
import subprocess
from collections.abc import Collection, Mapping, Sequence
from typing import Any

# Explains the mark of such runs, everywhere.
TRANSDUCTIVE = "training, or that of the weights, saw images that judge it"


def format_value(value: Any) -> str:
    """Formats a setting or a fact like JSON, but strings unquoted and floats with five digits."""
    if isinstance(value, float):
        return f"{value:.5g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def format_result(value: Any, missing: str = "–") -> str:
    """Formats a result of a run, floats with four digits.

    Args:
        value: a number or a word, such as a run's status; None: the run has none.
        missing: replaces None.
    """
    if value is None:
        return missing
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    every = [head, ["---"] * len(head), *rows]
    cells = [[cell.replace("|", r"\|") for cell in row] for row in every]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def count(number: float, word: str) -> str:
    """Counts things: `1 step`, `2,028 steps`, `2.5 epochs`, `2 classes`."""
    spelt = f"{number:,}" if isinstance(number, int) else f"{number:.3g}"
    ending = "es" if word.endswith("s") else "s"
    return f"{spelt} {word}{'' if spelt == '1' else ending}"


def as_arguments(options: Mapping[str, Any]) -> str:
    """Writes options as the arguments of a call in Python."""
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


def percent(part: float, whole: float) -> str:
    """Spells a share with two digits: `0.032 %`, `4.7 %`, `100 %`."""
    share = 100 * part / whole
    return f"{share:.0f} %" if share >= 99.5 else f"{share:.2g} %"


def did_you_mean(word: str, known: Collection[str], alike: float = 0.6) -> str:
    """Returns ` Did you mean …?` with the nearest known word, or an empty string.

    Args:
        word: an unknown word.
        known: the known words.
        alike: how similar the nearest word must be, 0 to 1 (`difflib`).
    """
    spelt = {each.lower(): each for each in known}
    near = difflib.get_close_matches(word.lower(), spelt, 1, alike)
    return f" Did you mean {spelt[near[0]]}?" if near else ""


def one_line(text: str, most: int = 1200) -> str:
    """Returns a sentence without line breaks; if it is far too long, without its middle."""
    line = " ".join(text.split())
    half = most // 2
    return line if len(line) <= most else f"{line[:half]} … {line[-half:]}"


def command_line(*words: str) -> str:
    """Joins the words of a command as one types them, quoted where needed.

    The quotes of other systems are ordinary signs for `cmd` on Windows.
    """
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


# Line breaks, and control characters of terminals.
_NOT_IN_A_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def printable(name: str | os.PathLike[str]) -> str:
    r"""Escapes a file name, which on Linux may contain anything, as in `caf\xe9.jpg`, `a\nb`."""
    text = os.fsencode(name).decode(errors="backslashreplace")
    return _NOT_IN_A_LINE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


_NAMED = 4  # classes, on either side


def best_and_worst(by_class: Sequence[tuple[str, float]]) -> list[str]:
    """Says how well classes do: the best and the worst few, or all if there are few.

    Args:
        by_class: names and IoU, the best first.
    """

    def listed(some: Sequence[tuple[str, float]]) -> str:
        return ", ".join(f"{name} {value:.2f}" for name, value in some)

    if len(by_class) <= 2 * _NAMED:
        return [f"By class: {listed(by_class)}"] if by_class else []
    return [f"Best:  {listed(by_class[:_NAMED])}", f"Worst: {listed(by_class[: -_NAMED - 1 : -1])}"]


def in_units(number: float) -> str:
    """Spells a large number with two digits and the prefix of its unit: `1.2 G`, `340 M`, `7 k`."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            value = number / factor
            return f"{value:.0f} {prefix}" if value >= 9.95 else f"{value:.2g} {prefix}"
    return f"{number:.0f} "
