"""Reads the docstring of each field of `config/hparams.py`, for --help and the documentation."""

from __future__ import annotations

import ast
import inspect
from functools import cache
from itertools import pairwise
from pathlib import Path

from config.settings_tree import Leaf


def advice(leaf: Leaf) -> str:
    """Returns the docstring of a setting on one line; empty if it has none."""
    name = leaf.path.rpartition(".")[2]
    return _advice(inspect.getfile(leaf.group)).get((leaf.group.__name__, name), "")


@cache
def _advice(file: str) -> dict[tuple[str, str], str]:
    # From the syntax tree, because annotations may span several lines.
    return {
        (group.name, field.target.id): " ".join(inspect.cleandoc(below.value.value).split())
        for group in ast.parse(Path(file).read_bytes()).body
        if isinstance(group, ast.ClassDef)
        for field, below in pairwise(group.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }
