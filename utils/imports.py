"""Imports what a table names."""

from __future__ import annotations

import importlib
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
