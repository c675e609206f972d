"""Explains Python's errors in config/hparams.py, which users edit, in a sentence. Imports no torch.

The values in it are checked like all others, by `config/validation.py`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from config.parsing import Command

_EDITED = ("hparams.py", "names.py")
_RESTORE = (
    "`git diff config/hparams.py` shows what was changed, `git checkout config/hparams.py` "
    "restores the whole file"
)
_ASSIGNED = "a setting is written NAME: TYPE = VALUE"
# Parts of Python's messages, and what to write instead.
_ADVICE = {
    "non-default argument": _ASSIGNED,
    "required positional argument": _ASSIGNED,
    "without its type": _ASSIGNED,
    "mutable default <class 'list'>": "a list is written field(default_factory=lambda: [1.0, 2.0])",
    "'list' object is not callable": "a list is written field(default_factory=lambda: [1.0, 2.0])",
    "unicodeescape": "folders are written with / on Windows too",
    "is not defined": "texts stand in quotation marks, and Python's words are True, False and None",
    "null bytes": "save it as UTF-8",
    "codec can't decode": "save it as UTF-8",
    "no such setting": _RESTORE,
    "cannot import name": _RESTORE,
    "No module named": _RESTORE,
}


def load_parser() -> Callable[[Sequence[str]], Command | str]:
    """Returns the function that parses a command line, after reading every setting.

    Raises:
        ModuleNotFoundError: the project is not set up.
        ValueError: the file cannot be read; says where.
    """
    try:
        from config.hparams import Hparams
        from config.rules import rules_of
        from config.settings_tree import leaves

        tuple(leaves(Hparams()))
        rules_of(Hparams)
        from config.parsing import parse
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name != "config.hparams":
            raise
        raise ValueError(_mistake(error)) from error
    return parse


def _mistake(error: Exception) -> str:
    """Says where the file is wrong, and what to write instead, if known."""
    advice = next((said for part, said in _ADVICE.items() if part in str(error)), "")
    return f"{_place(error)}: {error}".rstrip(".") + (f" ({advice})." if advice else ".")


def _place(error: Exception) -> str:
    if isinstance(error, SyntaxError) and error.filename:  # has the line itself
        return error.filename
    frames = traceback.extract_tb(error.__traceback__)
    edited = [frame for frame in frames if frame.filename.endswith(_EDITED)]
    return f"{edited[-1].filename}, line {edited[-1].lineno}" if edited else "config/hparams.py"


def lost_setting(error: AttributeError) -> str:
    """Says which setting is missing from the file, if that is the error; else empty."""
    group = error.obj if isinstance(error.obj, type) else type(error.obj)
    if group.__module__ != "config.hparams":
        return ""
    what = f"{group.__name__} has no setting {error.name}, which is needed"
    return f"config/hparams.py: {what} ({_RESTORE})."
