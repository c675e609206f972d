"""Hparams to and from plain nested dicts and YAML files."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import yaml

from config.hparams import Hparams
from config.rules import get_leaf
from utils.files import write_atomically


class ConfigError(ValueError):
    """A setting that cannot be: the message names its dotted path and what to do."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One setting: where it is, what it holds, what it may hold."""

    path: str
    value: Any
    default: Any
    annotation: Any


def leaves(hparams: Any, prefix: str = "") -> Iterator[Leaf]:
    """Walks every setting, depth first, in the order of the file."""
    hints = get_type_hints(type(hparams), include_extras=True)
    defaults = type(hparams)()
    for item in dataclasses.fields(hparams):
        value, path = getattr(hparams, item.name), prefix + item.name
        if dataclasses.is_dataclass(value):
            yield from leaves(value, path + ".")
        else:
            yield Leaf(path, value, getattr(defaults, item.name), hints[item.name])


def set_leaf(hparams: Hparams, path: str, value: Any) -> None:
    """Sets the setting at a dotted path, which must exist."""
    *groups, leaf = path.split(".")
    group = get_leaf(hparams, ".".join(groups)) if groups else hparams
    setattr(group, leaf, value)


def suggestion(path: str, known: list[str]) -> str:
    """Returns ` Did you mean …?` with the nearest valid name, or an empty string."""
    by_leaf = {name.rpartition(".")[2]: name for name in reversed(known)}
    leaf = path.rpartition(".")[2]
    near = [name for name in known if name.startswith(path)]
    near = near or difflib.get_close_matches(path, known, 1, 0.6)
    near = near or [by_leaf[name] for name in difflib.get_close_matches(leaf, by_leaf, 1, 0.75)]
    return f" Did you mean {near[0]}?" if near else ""


def base_types(annotation: Any) -> tuple[Any, ...]:
    """Unfolds `Annotated` and unions into their member types."""
    if get_origin(annotation) is Annotated:
        return base_types(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(base for arg in get_args(annotation) for base in base_types(arg))
    return (annotation,)


def coerced(value: Any, annotation: Any) -> Any:
    """Returns a value as YAML reads it in the type that a setting has."""
    # YAML reads `1e-3` as a string and `1` as an int; both are floats where a float is asked for.
    allowed = base_types(annotation)
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        return value if int in allowed else float(value)
    if float in allowed and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def to_dict(hparams: Hparams) -> dict[str, Any]:
    """Returns every setting as a plain nested dict."""
    return dataclasses.asdict(hparams)


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
                    raise ConfigError(f"{source}: {path} is a group of settings, got {value!r}.")
                visit(value, path + ".")
            else:
                raise ConfigError(
                    f"{source}: there is no setting {path}.{suggestion(path, list(known))}"
                )

    visit(settings, "")
    return hparams


def read_yaml(file: Path) -> dict[str, Any]:
    """Reads a YAML mapping.

    Raises:
        ConfigError: the file is not valid YAML or does not hold a mapping.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file} must hold `name: value` lines, got a {type(content).__name__}.")
    return content


def write_yaml(settings: Mapping[str, Any], file: Path) -> None:
    """Writes a nested dict so that `read_yaml` gives it back."""
    write_atomically(file, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))
