"""Checks hparams as a whole: types, ranges, and settings that would have no effect."""

from __future__ import annotations

import math
from contextlib import suppress
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any, Literal, get_args, get_origin
from unicodedata import category

from config.combinations import check_combinations
from config.errors import ConfigError, as_typed, shown
from config.hparams import Hparams
from config.resolve import choose_names
from config.rules import metadata, no_effect
from config.settings_tree import at_home, base_types, leaves, set_leaf
from config.types import Auto, OneOf, SomeOf, numbers_in
from utils.text import did_you_mean


def check(hparams: Hparams) -> Hparams:
    """Returns a copy with chosen names, after checking that all settings are valid and act.

    Paths, and NumPy's numbers and texts from a notebook, become plain types that YAML knows; `~/`
    is expanded. Names are chosen first, because effects depend on them: `backbone.name` is no
    longer `auto`, and fusions have the study's names.

    Raises:
        ConfigError: names the dotted path, the value and what was expected.
    """
    if not isinstance(hparams, Hparams):  # a notebook may pass anything
        raise ConfigError(f"Settings are a Hparams of config.hparams, got {shown(hparams)}.")
    check_values(hparams)
    hparams = choose_names(hparams)
    for leaf in leaves(hparams):
        set_leaf(hparams, leaf.path, _plain(leaf.value))
    for leaf in leaves(hparams):
        # null requests nothing, so it is allowed even without an effect.
        asked = leaf.value != leaf.default and leaf.value is not None
        if asked and (reason := no_effect(hparams, leaf.path)):
            raise ConfigError(f"--{leaf.path} {as_typed(leaf.value)} has no effect {reason}.")
    check_combinations(hparams)
    return hparams


def check_values(hparams: Hparams, source: str = "") -> None:
    """Checks every setting by itself: its type, its range, its name.

    Args:
        hparams: may have been edited or built by a user.
        source: where the values are from, for the message.

    Raises:
        ConfigError: names the dotted path, the value and what was expected.
    """
    before = f"{source}: " if source else ""
    for leaf in leaves(hparams):
        if problem := _problem(_plain(leaf.value), leaf.annotation):
            end = "" if problem.endswith("?") else "."
            raise ConfigError(f"{before}--{leaf.path} {shown(leaf.value)}: {problem}{end}")


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain_item(item) for item in value]
    return _plain_item(value)


def _plain_item(value: Any) -> Any:
    if isinstance(value, str):
        return at_home(str.__str__(value))  # str() of an enum member would be its name
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def _problem(value: Any, annotation: Any) -> str | None:
    allowed = base_types(annotation)
    constraints = list(metadata(annotation))
    if not any(_is_a(value, kind) for kind in allowed):
        return f"expected {_described(allowed, constraints)}{_hint(value, allowed)}"
    if value is None:
        return None
    if problem := _not_plain(value):
        return problem
    if isinstance(value, str) and value != "auto" and _may_be_auto(constraints):
        quoted = ", without quotation marks" if _reads_as(value, allowed) else ""
        return f"expected {_described(allowed, constraints)}{quoted}"
    problems = (each.problem(value) for each in constraints if hasattr(each, "problem"))
    return next((str(each) for each in problems if each), None)


_LARGEST = 2**32 - 1  # no count needs more, and 64 bits hold what is computed from it


def _not_plain(value: Any) -> str | None:
    """Says what is wrong with a value for any setting, whatever its range; None if nothing."""
    numbers = numbers_in(value)
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        return "expected a finite number"
    if any(isinstance(number, int) and abs(number) > _LARGEST for number in numbers):
        return f"expected at most {_LARGEST}"
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and not text.strip():
            return "expected a name, not an empty text"
        if isinstance(text, str) and any(category(sign) in ("Cc", "Cs") for sign in text):
            return "expected a text without control characters"
    return None


def _reads_as(text: str, kinds: tuple[Any, ...]) -> bool:
    """Whether a text is a number of one of these types."""
    for kind in {int, float} & set(kinds):
        with suppress(ValueError):
            kind(text)
            return True
    return False


def _is_a(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return any(value == option and type(value) is type(option) for option in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_a(item, get_args(kind)[0]) for item in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_PLURALS = {int: "whole numbers", float: "numbers", str: "names"}


def _described(allowed: tuple[Any, ...], constraints: list[Any]) -> str:
    auto = _may_be_auto(constraints)
    choices = [each.names for each in constraints if isinstance(each, OneOf | SomeOf)]
    parts: list[str] = []
    for kind in allowed:
        if get_origin(kind) is Literal:
            parts.extend(str(option) for option in get_args(kind))
        elif kind is type(None):
            parts.append("null")
        elif get_origin(kind) is list:
            parts.append("a list of " + _PLURALS[get_args(kind)[0]])
        elif kind is str and choices:
            parts.append(f"one of {', '.join(choices[0])}")
        else:
            parts.append("auto" if kind is str and auto else _WORDS[kind])
    return " or ".join(parts)


def _may_be_auto(constraints: list[Any]) -> bool:
    return any(isinstance(each, Auto) for each in constraints)


def _hint(value: Any, allowed: tuple[Any, ...]) -> str:
    literals = (get_args(kind) for kind in allowed if get_origin(kind) is Literal)
    known = [option for options in literals for option in options if isinstance(option, str)]
    near = did_you_mean(value, known) if isinstance(value, str) else ""
    comma = " (a comma makes one)" if isinstance(value, tuple) else ""
    return f".{near}" if near else f", got {type(value).__name__}{comma}"
