"""Converts Hparams to and from plain nested dicts and YAML files."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import reprlib
import types
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import yaml

from config.hparams import Hparams
from config.rules import as_typed, forget_rules, get_leaf
from utils.files import write_atomically
from utils.nested import entries, nested
from utils.strict_yaml import load_yaml
from utils.text import one_line


class ConfigError(ValueError):
    """An invalid setting; the message names its dotted path and what to do, on one line."""

    def __init__(self, message: str) -> None:
        # On one line, even if it quotes several lines of a file or a command line.
        super().__init__(one_line(message))


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


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80
_BRIEF.maxlevel = 2


def shown(value: Any) -> str:
    """Returns a short form of any value for a message."""
    if isinstance(value, list) and value and not any(isinstance(each, list) for each in value):
        words = [shown(each) for each in value[:10]]
        return " ".join(words if len(words) == len(value) else [*words, "…"])
    if isinstance(value, str):
        plain = value.isprintable() and value.strip() == value != ""
        return value if plain and len(value) <= _BRIEF.maxstring else _BRIEF.repr(value)
    if value is None or isinstance(value, bool):
        return as_typed(value)
    # Python refuses to print integers of more than 4300 digits.
    huge = isinstance(value, int) and abs(value) > _LONGEST
    return f"{Decimal(value):.3E}" if huge else _BRIEF.repr(value)


_LONGEST = 10**30


def suggestion(path: str, known: list[str], before: str = "") -> str:
    """Returns ` Did you mean …?` with the nearest valid name, or an empty string.

    Args:
        path: an invalid name.
        known: valid names.
        before: prefix of the suggestion, such as `--`.
    """
    by_leaf = {name.rpartition(".")[2]: name for name in reversed(known)}
    leaf = path.rpartition(".")[2]
    near = [name for name in known if name.startswith(path)]
    near = near or difflib.get_close_matches(path, known, 1, 0.6)
    near = near or [by_leaf[name] for name in difflib.get_close_matches(leaf, by_leaf, 1, 0.75)]
    return f" Did you mean {before}{near[0]}?" if near else ""


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


def read_yaml(file: Path) -> dict[str, Any]:
    """Reads a YAML mapping.

    Raises:
        ConfigError: the file is not valid YAML, or not a mapping.
    """
    content = parse_yaml(file.read_bytes(), str(file))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file} must hold `name: value` lines, got a {type(content).__name__}.")
    return content


def expanded(value: Any, file: Path) -> Any:
    """Replaces `${NAME}` in the values of a YAML file by environment variables.

    Numbers in variables become numbers, as in the file.

    Raises:
        ConfigError: there is no such variable.
    """
    if isinstance(value, Mapping):
        return {key: expanded(each, file) for key, each in value.items()}
    if isinstance(value, list):
        return [expanded(each, file) for each in value]
    names = re.findall(r"\$\{(\w+)\}", value) if isinstance(value, str) else []
    for name in names:
        if name not in os.environ:
            raise ConfigError(f"{file} needs the environment variable {name}: {name}=… python …")
        value = value.replace("${" + name + "}", os.environ[name])
    if names:
        with suppress(ConfigError):  # a text that is not YAML stays
            read = parse_yaml(value, str(file))
            return read if isinstance(read, int | float) else value
    return value


def parse_yaml(text: str | bytes, source: str) -> Any:
    """Parses a YAML text.

    Raises:
        ConfigError: it is not valid; the message begins with `source` and the line.
    """
    try:
        return load_yaml(text, source)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def write_yaml(settings: Mapping[str, Any], file: Path) -> None:
    """Writes a nested dict in the form that `read_yaml` reads."""
    write_atomically(file, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))
