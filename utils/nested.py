"""Nested dicts as flat ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def entries(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every value of a nested dict, including empty dicts, with its dotted path.

    A path comes twice if the dict has it both dotted and nested.
    """
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from entries(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Turns `{"data": {"name": …}}` into `{"data.name": …}`."""
    return {path: value for path, value in entries(tree) if not isinstance(value, Mapping)}


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turns `{"data.name": …}` into `{"data": {"name": …}}`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *groups, leaf = path.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[leaf] = value
    return tree


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merges two nested dicts; values of `above` override those of `below`."""
    result = dict(below)
    for name, value in above.items():
        under = result.get(name)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            value = merged(under, value)
        result[name] = value
    return result
