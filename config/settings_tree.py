"""Hparams as a tree: every setting by its dotted path, filled from nested dicts."""

from __future__ import annotations

import dataclasses
import os
import types
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from config.errors import ConfigError, shown, suggestion
from config.hparams import Hparams
from config.rules import forget_rules, get_leaf
from utils.nested import entries, nested


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One setting: its path, value, type and default, and the dataclass that defines it."""

    path: str
    value: Any
    default: Any
    annotation: Any
    group: type


def leaves(hparams: Any, prefix: str = "") -> Iterator[Leaf]:
    """Yields every setting, depth first, in the order of the file.

    Raises:
        ConfigError: a group is something else, or an attribute is not a setting.
    """
    kind: type = type(hparams)
    hints, defaults = _hints(kind), kind()
    if strays := [name for name in vars(hparams) if name not in hints]:
        hint = suggestion(prefix + strays[0], [prefix + name for name in hints])
        raise ConfigError(f"There is no setting {prefix}{strays[0]}.{hint}")
    for name, hint in hints.items():
        value, path = getattr(hparams, name), prefix + name
        declared = base_types(hint)[0]
        is_group = dataclasses.is_dataclass(declared)
        if is_group and not isinstance(value, declared):
            raise ConfigError(f"{path} is a group of settings, got {shown(value)}.")
        if is_group:
            yield from leaves(value, path + ".")
        else:
            yield Leaf(path, value, getattr(defaults, name), hint, kind)


@cache
def _hints(group: type) -> dict[str, Any]:
    hints = get_type_hints(group, include_extras=True)
    untyped = [name for name in vars(group) if not name.startswith("_") and name not in hints]
    if untyped:  # a class attribute: would be no option, and not be saved
        raise ConfigError(f"{group.__name__}.{untyped[0]} is no setting without its type.")
    return {item.name: hints[item.name] for item in dataclasses.fields(group)}


def read_tables_anew() -> None:
    """Rereads `config/names.py`, after parts were added to its tables."""
    _hints.cache_clear()
    forget_rules()


def set_leaf(hparams: Hparams, path: str, value: Any) -> None:
    """Sets the setting at a dotted path, which must exist."""
    *groups, leaf = path.split(".")
    group = get_leaf(hparams, ".".join(groups)) if groups else hparams
    setattr(group, leaf, value)


def base_types(annotation: Any) -> tuple[Any, ...]:
    """Unfolds `Annotated` and unions into their member types."""
    if get_origin(annotation) is Annotated:
        return base_types(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(base for arg in get_args(annotation) for base in base_types(arg))
    return (annotation,)


def holds_list(path: str) -> bool:
    """Whether a dotted path is a setting with several values."""
    return any(
        get_origin(kind) is list
        for leaf in leaves(Hparams())
        if leaf.path == path
        for kind in base_types(leaf.annotation)
    )


def coerced(value: Any, annotation: Any) -> Any:
    """Converts a value from YAML to the type of a setting."""
    # YAML reads `1e-3` as a string and `1` as an int: floats, if the setting is one. It also reads
    # `None` as a string: null, if the setting may be null. A whole number, such as that of a job,
    # is a text if the setting is one.
    allowed = base_types(annotation)
    if value == "None" and type(None) in allowed:
        return None
    if type(value) is int and str in allowed and not {int, float} & {*allowed}:
        return str(value)
    items = {get_args(kind)[0] for kind in allowed if get_origin(kind) is list}
    if isinstance(value, list):
        return [_as_float(each) if float in items else each for each in value]
    return _as_float(value) if float in {*allowed, *items} and int not in allowed else value


def _as_float(value: Any) -> Any:
    if not isinstance(value, int | str) or isinstance(value, bool):
        return value
    try:
        return float(value)
    except (ValueError, OverflowError):
        return value


def at_home(text: str) -> str:
    """Expands `~/`, which a shell does not do after `--option=`, and Windows' nowhere."""
    return os.path.expanduser(text) if text.startswith(("~/", "~\\")) else text  # noqa: PTH111 (any text)


def update(hparams: Hparams, settings: Mapping[str, Any], source: str) -> Hparams:
    """Overwrites settings of `hparams` with a nested dict.

    Raises:
        ConfigError: there is no such setting.
    """
    known = {leaf.path: leaf for leaf in leaves(hparams)}

    def visit(node: Mapping[str, Any], prefix: str) -> None:
        for name, value in node.items():
            path = f"{prefix}{name}"
            if path in known:
                set_leaf(hparams, path, coerced(value, known[path].annotation))
            elif any(other.startswith(path + ".") for other in known):
                if not isinstance(value, Mapping):
                    raise ConfigError(
                        f"{source}: {path} is a group of settings, got {shown(value)}."
                    )
                visit(value, path + ".")
            else:
                raise ConfigError(
                    f"{source}: there is no setting {shown(path)}.{suggestion(path, list(known))}"
                )

    visit(settings, "")
    return hparams


def unfolded(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Converts the dotted names of a file to nested groups.

    Raises:
        ConfigError: a setting is given twice.
    """
    found = list(entries(content))
    settings = dict(found)
    groups = {path[:i] for path in settings for i, sign in enumerate(path) if sign == "."}
    counts = Counter([*(path for path, _ in found), *groups])
    for path in settings:
        if counts[path] > 1:
            raise ConfigError(f"{source}: {shown(path)} stands there twice.")
    return nested(settings)
