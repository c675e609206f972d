"""Reads the tensors of pickles that name classes of other libraries, without loading these.

Checkpoints hold more than tensors: settings (OmegaConf, Lightning, mmengine), paths, NumPy's
numbers, such as the learning rates of official DINO. In torch's safe unpickler, a class that does
nothing stands in for every name: no code that a file contains or names is run or imported.
"""

from __future__ import annotations

import builtins
import sys
from _compat_pickle import REVERSE_IMPORT_MAPPING
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Modules of Python that settings may name; others are refused, as attacks call their functions.
_OF_SETTINGS = "argparse collections copyreg datetime decimal enum pathlib types typing uuid"
_OTHERS = {*sys.stdlib_module_names, *REVERSE_IMPORT_MAPPING.values()} - {*_OF_SETTINGS.split()}


class _Nothing:
    """Stands in for objects with their own form of state, such as NumPy's."""

    def __new__(cls, *_: Any) -> _Nothing:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Drops it."""


def read_without_classes(file: Path, names: Sequence[str]) -> Any:
    """Reads a pickle with stand-ins for the classes that it names.

    Args:
        file: a file that torch's safe unpickler refuses.
        names: the names for which it is refused.

    Returns:
        Its content; None if it names functions or classes that are not for settings, or keeps
        tensors in objects of other classes, like a pickled network.
    """
    if not names or not all(map(_may_be_settings, names)):
        return None
    stand_ins: list[Any] = []

    class Settings:
        """Stands in for an object: has its items and attributes, but not its methods."""

        def __new__(cls, *given: Any) -> Any:
            stand_in: Any = Counter()  # accepts items and attributes from the unpickler
            stand_in.given = given
            stand_ins.append(stand_in)
            return stand_in

    kinds: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (_Nothing if name.startswith("numpy.") else Settings, name) for name in names
    ]
    with torch.serialization.safe_globals(kinds):
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # some object is built in another way
            return None
    if any(_holds_tensors(vars(each), set()) for each in stand_ins):
        return None
    for each in stand_ins:
        vars(each).clear()  # one may be called `items`, like the method of mappings
    return found


def _may_be_settings(name: str) -> bool:
    module, _, rest = name.partition(".")
    if module == "builtins":  # `list`, and `getattr` for a method (mmengine), but not `exec`
        return rest == "getattr" or isinstance(getattr(builtins, rest, None), type)
    return module not in _OTHERS


def _holds_tensors(node: Any, seen: set[int]) -> bool:
    if isinstance(node, Tensor):
        return True
    if id(node) in seen or not isinstance(node, dict | list | tuple):
        return False
    seen.add(id(node))
    # Not `node.values()`: a stand-in may have an attribute of that name.
    parts = dict.values(node) if isinstance(node, dict) else node
    return any(_holds_tensors(part, seen) for part in parts)
