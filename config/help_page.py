"""The parser of the command line: its errors in one line, and the help page of a task."""

from __future__ import annotations

import argparse
import re
import textwrap
from typing import Any, NoReturn

from simple_parsing import ArgumentParser

from config.advice import advice
from config.errors import ConfigError, as_typed, shown, suggestion
from config.hparams import Hparams
from config.rules import possible_on, rules_of, settled_by
from config.settings_tree import holds_list, leaves
from config.types import OneOf, SomeOf

# --x 0.25,1 or "0.25 1" or [0.25, 1]
_JOINED = re.compile(r"argument --(\S+): invalid (?:int|float) value: '.*[,\[ ].*'")


class Parser(ArgumentParser):
    """simple-parsing's parser with one-line errors and a help page for the chosen task only."""

    task = "barlow_twins"

    def error(self, message: str) -> NoReturn:
        """Refuses a command line in one sentence, and suggests a similar option.

        Raises:
            ConfigError: always.
        """
        if message.startswith("unrecognized arguments: "):
            option, *_ = message.removeprefix("unrecognized arguments: ").split() or [""]
            # Options that are not settings, such as --study, were added before any group.
            others = [o for each in self._optionals._group_actions for o in each.option_strings]
            known = [leaf.path for leaf in leaves(Hparams())]
            known += [o.removeprefix("--") for o in others if o.startswith("--")]
            hint = suggestion(option.lstrip("-").partition("=")[0], known, "--")
            raise ConfigError(f"Unknown option {shown(option)}.{hint} --help lists all.")
        # The message quotes words of the user, which may be anything.
        line = textwrap.shorten(message, 500, placeholder=" …")
        line = re.sub(r"/--\S+\.no\w+", "", line)  # how simple-parsing would negate a flag
        joined = _JOINED.match(line)
        several = (
            " Several values are separated by spaces." if joined and holds_list(joined[1]) else ""
        )
        raise ConfigError(f"{line[:1].upper()}{line[1:]}.{several} --help lists all options.")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Refuses a value of `--GROUP.noNAME`, for which simple-parsing would exit successfully.

        Raises:
            ConfigError: always.
        """
        self.error(str(message))

    def format_help(self) -> str:
        """Returns the page: options with an effect on the task, each with its conditions."""
        settings = {leaf.path: leaf for leaf in leaves(Hparams())}
        for group in self._action_groups:
            for action in group._group_actions:
                path = next((o for o in action.option_strings if o.startswith("--")), "--")[2:]
                conditions = rules_of(Hparams).get(path)
                if conditions is None:  # a command: has no default to show
                    action.default = argparse.SUPPRESS
                    continue
                action.default = as_typed(settings[path].value) or "empty"
                # simple-parsing finds no docstring if an annotation spans several lines.
                action.help = advice(settings[path]).replace("%", "%%")
                if not possible_on(Hparams, path, self.task):
                    action.help = argparse.SUPPRESS
                elif needed := [
                    str(each) for each in conditions if not settled_by(each, self.task)
                ]:
                    action.help = f"{action.help} [Needs {'; '.join(needed)}]"
                # Without simple-parsing's negations, and its short forms of one-letter names.
                action.option_strings = [f"--{path}"]
                if choices := named_values(settings[path].annotation):
                    action.metavar = "{" + ",".join(choices) + "}"
            group.title = (group.title or "").partition(" [")[0].replace("Hparams", "") or "Task"
            if all(action.help == argparse.SUPPRESS for action in group._group_actions):
                group.description = None
        self._action_groups = [group for group in self._action_groups if _visible(group)]
        return super().format_help()


def _visible(group: Any) -> bool:
    return any(action.help != argparse.SUPPRESS for action in group._group_actions)


def named_values(annotation: Any) -> list[str]:
    """Returns the possible names for a setting, or for items of its list; empty without."""
    for item in getattr(annotation, "__metadata__", ()):
        if isinstance(item, OneOf | SomeOf):
            return list(item.names)
    return []
