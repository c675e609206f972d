"""Reads and writes settings as YAML files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from config.errors import ConfigError
from utils.files import write_atomically
from utils.strict_yaml import load_yaml


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
