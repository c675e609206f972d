"""Hparams to and from plain nested dicts and YAML files."""

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
    """A setting that cannot be: the message names its dotted path and what to do, on one line."""

    def __init__(self, message: str) -> None:
        # Whatever it quotes of a file or a command line.
        super().__init__(one_line(message))


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One setting: where it is, what it holds, what it may hold, the dataclass it lies in."""

    path: str
    value: Any
    default: Any
    annotation: Any
    group: type


def leaves(hparams: Any, prefix: str = "") -> Iterator[Leaf]:
    """Walks every setting, depth first, in the order of the file.

    Raises:
        ConfigError: something else in the place of a group, or an attribute that is no setting.
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
    if untyped:  # of the class, not of a run: no option, not written down
        raise ConfigError(f"{group.__name__}.{untyped[0]} is no setting without its type.")
    return {item.name: hints[item.name] for item in dataclasses.fields(group)}


def read_tables_anew() -> None:
    """Lets settings know what has been added to `config/names.py` since they were looked at."""
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
    """Returns a value as it stands in a message: short, whatever it is."""
    if isinstance(value, list) and value and not any(isinstance(each, list) for each in value):
        words = [shown(each) for each in value[:10]]
        return " ".join(words if len(words) == len(value) else [*words, "…"])
    if isinstance(value, str):
        plain = value.isprintable() and value.strip() == value != ""
        return value if plain and len(value) <= _BRIEF.maxstring else _BRIEF.repr(value)
    if value is None or isinstance(value, bool):
        return as_typed(value)
    # Python writes no whole number of more than 4300 digits.
    huge = isinstance(value, int) and abs(value) > _LONGEST
    return f"{Decimal(value):.3E}" if huge else _BRIEF.repr(value)


_LONGEST = 10**30


def suggestion(path: str, known: list[str], before: str = "") -> str:
    """Returns ` Did you mean …?` with the nearest valid name, or an empty string.

    Args:
        path: that is not valid.
        known: valid names.
        before: what such a name begins with where it is typed.
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
    """Whether a dotted path is a setting of several values."""
    return any(
        get_origin(kind) is list
        for leaf in leaves(Hparams())
        if leaf.path == path
        for kind in base_types(leaf.annotation)
    )


def coerced(value: Any, annotation: Any) -> Any:
    """Returns a value as YAML reads it in the type that a setting has."""
    # YAML reads `1e-3` as a string and `1` as an int; both are floats where a float is asked for.
    # `None`, which it reads as a string too, is null where that is possible.
    allowed = base_types(annotation)
    if value == "None" and type(None) in allowed:
        return None
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
    """Returns a path below `~` as a shell spells it out, which it does not after `--option=`."""
    return os.path.expanduser(text) if text.startswith("~/") else text  # noqa: PTH111 (any text)


def update(hparams: Hparams, settings: Mapping[str, Any], source: str) -> Hparams:
    """Overwrites settings of `hparams` with a nested dict.

    Raises:
        ConfigError: `settings` names something that does not exist.
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
    """Turns the dotted names of a file into groups: each setting then has one place.

    Raises:
        ConfigError: one stands there twice.
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
        ConfigError: the file is not valid YAML or does not hold a mapping.
    """
    content = parse_yaml(file.read_bytes(), str(file))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file} must hold `name: value` lines, got a {type(content).__name__}.")
    return content


def expanded(value: Any, file: Path) -> Any:
    """Replaces `${NAME}` in a YAML file's values by the environment's variables.

    A number is one, as if it stood in the file.

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
        with suppress(ConfigError):  # a text need be no YAML
            read = parse_yaml(value, str(file))
            return read if isinstance(read, int | float) else value
    return value


def parse_yaml(text: str | bytes, source: str) -> Any:
    """Returns what a YAML text means.

    Raises:
        ConfigError: it is not valid; begins with `source` and the line.
    """
    try:
        return load_yaml(text, source)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def write_yaml(settings: Mapping[str, Any], file: Path) -> None:
    """Writes a nested dict so that `read_yaml` gives it back."""
    write_atomically(file, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))
