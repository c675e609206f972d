"""Imports objects by name, and checks for optional packages."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any


def load(target: str) -> Any:
    """Imports `module:attribute`.

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
    """Whether an optional package can be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # it is in sys.modules, but not importable
        return False
