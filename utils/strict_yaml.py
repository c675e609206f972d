"""Strict YAML for files of users: plain values only, every key once, nothing inside itself."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError

_TAGS = ("null", "bool", "int", "float", "str", "seq", "map", "merge")
_PLAIN = {f"tag:yaml.org,2002:{name}" for name in _TAGS}
_INT = "tag:yaml.org,2002:int"
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$")
_LONGEST_PROBLEM = 300  # characters
_MOST_LEVELS = 20
_MOST_VALUES = 1_000_000  # aliases of aliases grow exponentially


def load_yaml(text: str | bytes, source: str) -> Any:
    """Parses a YAML text.

    Raises:
        ValueError: it is not valid; the message begins with `source` and the line.
    """
    try:
        return yaml.load(text, StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        problem = str(error.problem)  # may quote the whole text
        if len(problem) > _LONGEST_PROBLEM:
            problem = problem[:_LONGEST_PROBLEM] + "…"
        raise ValueError(f"{source}{line}: {problem}.") from error
    except yaml.YAMLError as error:
        raise ValueError(
            f"{source} is no text in UTF-8, save it as such: {' '.join(str(error).split())}."
        ) from error
    except RecursionError as error:
        raise ValueError(f"{source} is nested too deeply.") from error


class StrictLoader(yaml.SafeLoader):
    """A SafeLoader without its silent surprises.

    Dates, `010` (8 for SafeLoader) and `2:30` (150 for SafeLoader) are texts. Keys given twice, of
    which SafeLoader takes the last, are errors, as are anchors inside themselves.
    """

    yaml_implicit_resolvers: ClassVar = {  # type: ignore[misc]
        first: [(tag, _WHOLE if tag == _INT else regex) for tag, regex in known if tag in _PLAIN]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors: ClassVar = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag in _PLAIN or tag is None
    }

    def get_single_node(self) -> yaml.Node | None:
        """Returns the document before it becomes values.

        Raises:
            ConstructorError: a key is given twice, an anchor is inside itself, or it is too large.
        """
        document = super().get_single_node()
        if document is not None:
            self._values_left = _MOST_VALUES
            self._check(document, "", ())
        return document

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Returns the value of a node.

        Raises:
            ConstructorError: it does not fit its type, such as `!!int x`.
        """
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, ArithmeticError) as error:
            raise _refusal("this is no value of its type", node) from error

    def _check(self, node: yaml.Node, path: str, above: tuple[yaml.Node, ...]) -> None:
        self._values_left -= 1
        if node in above:
            raise _refusal(f"{path or 'the file'} contains itself", node)
        if len(above) > _MOST_LEVELS or self._values_left < 0:
            raise _refusal(f"{path} is nested too deeply, or too large", node)
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node, path)
            for key, value in node.value:
                self._check(key, path, (*above, node))
                self._check(value, _below(path, key), (*above, node))
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                self._check(value, path, (*above, node))

    def _check_keys(self, node: yaml.MappingNode, path: str) -> None:
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):  # others are refused as unhashable
                name = (key.tag, key.value)
                if name in lines:
                    raise _refusal(f"{_below(path, key)} stands in line {lines[name]} too", key)
                lines[name] = key.start_mark.line + 1


def _below(path: str, key: yaml.Node) -> str:
    name = key.value if isinstance(key, yaml.ScalarNode) else "?"
    return f"{path}.{name}".removeprefix(".")


def _refusal(problem: str, node: yaml.Node) -> ConstructorError:
    return ConstructorError(None, None, problem, node.start_mark)
