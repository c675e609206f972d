"""Converts settings to words of a command line, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from config.errors import ConfigError, as_typed, shown, suggestion
from config.hparams import Hparams
from config.settings_tree import coerced, holds_list, leaves
from config.yaml_files import parse_yaml

MAIN = Path(__file__).parents[1] / "main.py"


def options(words: Sequence[str]) -> dict[str, list[str]]:
    """Groups a command line by option.

    Raises:
        ConfigError: a word is not a setting.
    """
    found: dict[str, list[str]] = {}
    path = ""
    for word in words:
        if word.startswith("--"):
            path, _, value = word[2:].partition("=")
            found[path] = [value] if value else []
        elif not path:
            raise ConfigError(f"Unknown word {word}. --help lists all options.")
        else:
            found[path].append(word)
    check_paths(found, "--")
    return found


def check_paths(paths: Mapping[str, Any], before: str) -> None:
    """Checks that dotted paths are settings.

    Raises:
        ConfigError: one is not a setting; the message begins with `before`.
    """
    known = [leaf.path for leaf in leaves(Hparams())]
    for path in paths:
        if path not in known:
            raise ConfigError(f"{before}{path}: no such setting.{suggestion(path, known)}")


def as_words(value: Any) -> list[str]:
    """Returns the words to type after an option for this value."""
    if isinstance(value, list):
        return [word for each in value for word in as_words(each)]
    return [as_typed(value)]


def typed(words: Sequence[str], path: str) -> Any:
    """Returns the value of the words after an option, read as in a YAML file.

    Raises:
        ConfigError: there are no or several words for a setting with one value.
    """
    leaf = next(leaf for leaf in leaves(Hparams()) if leaf.path == path)
    values = [
        coerced(parse_yaml(word, f"--{path} {shown(word)}"), leaf.annotation) for word in words
    ]
    lists = holds_list(path)
    if not lists and len(values) != 1:
        raise ConfigError(f"--{path} {shown(values)}: expected one value.")
    return values if lists else values[0]


def as_command_line(settings: Mapping[str, Sequence[str]]) -> list[str]:
    """Joins options and their words to a command line."""
    return [word for path, words in settings.items() for word in (f"--{path}", *words)]
