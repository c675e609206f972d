"""Values as text for tables."""

from __future__ import annotations

import json
from typing import Any


def format_value(value: Any) -> str:
    """Spells a setting or a fact as JSON does, but strings bare and floats with five digits."""
    if isinstance(value, float):
        return f"{value:.5g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def format_result(value: Any, missing: str = "–") -> str:
    """Writes what a run came to, floats with four digits.

    Args:
        value: a number or a word such as a run's status; None: the run has none.
        missing: stands for None.
    """
    if value is None:
        return missing
    return f"{value:.4g}" if isinstance(value, float) else str(value)
