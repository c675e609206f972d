"""Errors of settings, and how the values and names in them are spelt."""

from __future__ import annotations

import difflib
import reprlib
from decimal import Decimal
from typing import Any

from utils.text import one_line

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80
_BRIEF.maxlevel = 2
_LONGEST = 10**30


class ConfigError(ValueError):
    """An invalid setting; the message names its dotted path and what to do, on one line."""

    def __init__(self, message: str) -> None:
        # On one line, even if it quotes several lines of a file or a command line.
        super().__init__(one_line(message))


def as_typed(value: Any) -> str:
    """Returns a value as typed on a command line."""
    return " ".join(map(_as_word, value if isinstance(value, list | tuple) else [value]))


def _as_word(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def shown(value: Any) -> str:
    """Returns a short form of any value for a message."""
    if isinstance(value, list) and value and not any(isinstance(each, list) for each in value):
        words = [shown(each) for each in value[:10]]
        return " ".join(words if len(words) == len(value) else [*words, "…"])
    if isinstance(value, str):
        plain = value.isprintable() and value.strip() == value != ""
        return value if plain and len(value) <= _BRIEF.maxstring else _BRIEF.repr(value)
    if value is None or isinstance(value, bool):
        return as_typed(value)
    # Python refuses to print integers of more than 4300 digits.
    huge = isinstance(value, int) and abs(value) > _LONGEST
    return f"{Decimal(value):.3E}" if huge else _BRIEF.repr(value)


def suggestion(path: str, known: list[str], before: str = "") -> str:
    """Returns ` Did you mean …?` with the nearest valid name, or an empty string.

    Args:
        path: an invalid name.
        known: valid names.
        before: prefix of the suggestion, such as `--`.
    """
    by_leaf = {name.rpartition(".")[2]: name for name in reversed(known)}
    leaf = path.rpartition(".")[2]
    near = [name for name in known if name.startswith(path)]
    near = near or difflib.get_close_matches(path, known, 1, 0.6)
    near = near or [by_leaf[name] for name in difflib.get_close_matches(leaf, by_leaf, 1, 0.75)]
    return f" Did you mean {before}{near[0]}?" if near else ""
