"""Completion by the Tab key in a shell: options of the task, and their possible values.

activate-global-python-argcomplete      once, for `python main.py` in bash or zsh
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from config.advice import advice
from config.help_page import named_values
from config.hparams import Hparams
from config.lookup import known_experiments, known_runs
from config.parsing import add_actions
from config.rules import metadata, possible_on
from config.settings_tree import base_types, leaves
from config.types import Auto

_RUNS = ("--evaluate", "--predict", "--compare", "--export", "--run.resume")
_COMPLETERS: dict[str, Callable[..., list[str]]] = {
    "--experiment": lambda **_: known_experiments(),
    "--study": lambda **_: known_experiments("studies"),
    **dict.fromkeys(_RUNS, lambda **_: known_runs(Hparams().run.dir)),
}


def complete() -> None:
    """Sends the shell the completions of the line so far, and ends the process."""
    import argcomplete

    words = shlex.split(os.environ.get("COMP_LINE", ""), posix=False)
    argcomplete.autocomplete(parser_for(words), always_complete_options="long")


def parser_for(words: list[str]) -> argparse.ArgumentParser:
    """Returns a parser that knows the options and values, but parses nothing.

    Args:
        words: of the line so far, which may give the task.
    """
    task = Hparams().task
    for option, value in zip(words, [*words[1:], ""], strict=True):
        if option == "--task":
            task = value
    parser = argparse.ArgumentParser(add_help=False)
    add_actions(parser)
    for leaf in leaves(Hparams()):
        if possible_on(Hparams, leaf.path, task):
            action = parser.add_argument(
                f"--{leaf.path}", nargs="+", help=advice(leaf).replace("%", "%%")
            )
            values = possible_values(leaf.annotation)
            action.completer = lambda values=values, **_: values  # type: ignore[attr-defined]
    for action in parser._actions:
        if completer := _COMPLETERS.get(action.option_strings[0]):
            action.completer = completer  # type: ignore[attr-defined]
    return parser


def possible_values(annotation: Any) -> list[str]:
    """Returns the possible words for a setting; empty for numbers and free text."""
    found = [name.removesuffix("*") for name in named_values(annotation)]  # of timm/*
    if any(isinstance(each, Auto) for each in metadata(annotation)):
        found.append("auto")
    for kind in base_types(annotation):
        if kind is bool:
            found += ["true", "false"]
        if kind is NoneType:
            found.append("null")
        if get_origin(kind) is Literal:
            found += [str(each) for each in get_args(kind)]
    return found
