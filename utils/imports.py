"""Imports what a table names, and looks whether optional packages are there."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any


def load(target: str) -> Any:
    """Returns what `module:attribute` names.

    Raises:
        ValueError: there is no such module or attribute.
    """
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(
            f"config/names.py names {target}, which cannot be found: {error}."
        ) from error


def is_installed(package: str) -> bool:
    """Whether a package that may be missing can be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # it is known not to be importable
        return False
