"""Turns the command line and experiment files into checked Hparams. Imports no torch."""

from __future__ import annotations

import argparse
import platform
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, get_args

from simple_parsing import ArgumentGenerationMode, NestedMode

from config import names
from config.actions import check_acts, settings_given
from config.base_settings import base_settings, early_options, given_name
from config.effective import without_superseded
from config.errors import ConfigError
from config.fast import shortened
from config.help_page import Parser
from config.hparams import Hparams
from config.lookup import CONFIG_DIR
from config.settings_tree import at_home, base_types, holds_list, leaves, set_leaf
from config.validation import check, check_values

_USAGE = """python main.py [--task TASK] [--experiment NAME] [--any.setting VALUE …] [--fast]
       python main.py --study NAME | --compare RUN RUN … | --run.resume RUN
       python main.py --evaluate RUN | --predict RUN --images FOLDER
       python main.py --export RUN [--format safetensors|onnx|pt2]
       python main.py --help [--task TASK] | --version"""
ExportFormat = Literal["safetensors", "onnx", "pt2"]
_NULLS = ("null", "None")
_ACTIONS = ("--study", "--evaluate", "--predict", "--compare", "--export", "--run.resume")


@dataclass
class Command:
    """What the user asked for: settings, and at most one action other than training."""

    hparams: Hparams
    experiment: str | None = None
    study: str | None = None
    seeds: int | None = None
    print_commands: bool = False
    overrides: list[str] = field(default_factory=list)  # for a study: options of all its runs
    notes: list[str] = field(default_factory=list)  # sentences about settings that were changed
    tried_out: Hparams | None = None  # with --fast: the settings without it
    evaluate: str | None = None
    predict: str | None = None
    images: list[str] = field(default_factory=list)
    compare: list[str] = field(default_factory=list)
    export: str | None = None
    format: ExportFormat | None = None
    debug: bool = False


def _parser(task: str) -> Parser:
    parser = Parser(
        prog="python main.py",
        usage=_USAGE,
        description="Train with config/hparams.py; every setting below can be overridden.",
        allow_abbrev=False,
        add_help=False,
        argument_generation_mode=ArgumentGenerationMode.NESTED,
        nested_mode=NestedMode.WITHOUT_ROOT,
    )
    parser.task = task
    add_actions(parser)
    return parser


def add_actions(parser: argparse.ArgumentParser) -> None:
    """Adds the options that are not settings."""
    add = parser.add_argument
    add_named = partial(add, type=given_name)
    add_for_run = partial(add_named, metavar="RUN")
    add("--help", "-h", action="store_true", help="show this page for the chosen --task")
    add("--version", action="store_true", help="the version of this project and of torch")
    add_named(
        "--experiment",
        metavar="NAME_OR_FILE",
        help="settings from config/experiments/NAME.yaml",
    )
    add_named(
        "--study", metavar="NAME_OR_FILE", help="run config/studies/NAME.yaml, make its table"
    )
    add("--seeds", type=int, metavar="N", help="with --study: seeds 0 … N-1")
    add("--print-commands", action="store_true", help="with --study: print the runs' commands")
    add_for_run("--evaluate", help="evaluate the best checkpoint of a run again")
    add_for_run("--predict", help="label images with a segmentation run")
    add_named(
        "--images",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="with --predict: folders of images, files, or patterns such as 'photos/*.jpg'",
    )
    add_for_run("--compare", nargs="+", default=[], help="table of settings and results")
    add_for_run("--export", help="write the run's network for use elsewhere")
    add(
        "--format",
        choices=get_args(ExportFormat),
        help="with --export: safetensors (default: the backbone's tensors) | onnx | pt2 (a "
        "program: the backbone, or the whole of a segmentation)",
    )
    add("--fast", action="store_true", help="one batch of everything: does it work?")
    add("--debug", action="store_true", help="full traceback on errors")


def parse(argv: Sequence[str]) -> Command | str:
    """Turns the command line into a `Command`, or into the text of --help or --version.

    Raises:
        ConfigError: an option or name is unknown, or a value is invalid or has no effect.
    """
    if "--version" in argv:
        return _version()
    argv, nulls = _split_nulls([_spelt_out(each) for word in argv for each in _unfolded(word)])
    given = [option for option in _ACTIONS if option in {word.partition("=")[0] for word in argv}]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} cannot be combined.")
    if given and "--fast" in argv:
        raise ConfigError(f"--fast has no effect with {given[0]}: it is for a run of its own.")
    check_values(Hparams(), "config/hparams.py")
    early = early_options(argv)
    if "--study" in given and not {"--help", "-h"} & set(argv):
        return _study(argv)
    hparams, run = base_settings(early)
    if run and early.task not in (None, hparams.task):
        (action,) = given
        raise ConfigError(
            f"--task {early.task} has no effect with {action}: {run.name} is a run of task "
            f"{hparams.task}."
        )
    below = deepcopy(hparams)
    hparams.task = early.task or hparams.task
    if hparams.task not in names.TASKS:
        raise ConfigError(f"--task {hparams.task}: expected one of {', '.join(names.TASKS)}.")

    # In a thread, because simple-parsing evaluates annotations with the variables of the outermost
    # frame: a calling script's `names` would replace ours.
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(_parsed, argv, hparams).result()
    if isinstance(found, str):
        return found
    arguments = vars(found)
    hparams = arguments.pop("hparams")
    if run and "--run.resume" in given:
        hparams.run.resume = str(run)
    for path in nulls:
        set_leaf(hparams, path, None)
    for name in ("help", "version", "subgroups"):
        arguments.pop(name, None)
    on_command_line = settings_given(argv) | nulls
    hparams, notes = without_superseded(hparams, below, on_command_line)
    tried_out = hparams if arguments.pop("fast") else None
    if tried_out:
        hparams, note = shortened(hparams, on_command_line)
        notes.append(note)
    command = Command(hparams=check(hparams), notes=notes, tried_out=tried_out, **arguments)
    _check_actions(command)
    check_acts(command.hparams, given, on_command_line)
    return command


def _parsed(argv: Sequence[str], hparams: Hparams) -> argparse.Namespace | str:
    """Parses a command line over these settings; returns the help page if asked for."""
    parser = _parser(hparams.task)
    parser.add_arguments(Hparams, dest="hparams", default=hparams)
    if "--help" in argv or "-h" in argv:
        parser.parse_known_args([])
        return parser.format_help()
    return parser.parse_args(argv)


def _version() -> str:
    project = tomllib.loads((CONFIG_DIR.parent / "pyproject.toml").read_text("utf-8"))["project"]
    found = [f"{project['name']} {project['version']}", f"Python {platform.python_version()}"]
    for package in ("torch", "pytorch-lightning"):
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return ", ".join(found)


def _study(argv: Sequence[str]) -> Command:
    # Each run has its own settings; the remaining options are for all of them.
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--study", type=given_name)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--print-commands", action="store_true")
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("--run.dir", type=given_name, dest="dir", default=Hparams().run.dir)
    arguments, overrides = parser.parse_known_args(list(argv))
    if any(word.partition("=")[0] == "--experiment" for word in overrides):
        raise ConfigError("--study and --experiment cannot be combined.")
    hparams = Hparams()
    hparams.run.dir = at_home(vars(arguments).pop("dir"))
    command = Command(hparams, overrides=overrides, **vars(arguments))
    _check_actions(command)
    return command


def _unfolded(word: str) -> list[str]:
    """Splits `--x=[1, 2]`, wandb's form of a list, into option and values."""
    option, _, value = word.partition("=")
    if value[:1] + value[-1:] != "[]" or not holds_list(option.removeprefix("--")):
        return [word]
    return [option, *(each.strip(" '\"") for each in value[1:-1].split(",") if each.strip())]


def _spelt_out(word: str) -> str:
    option, sign, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{option}{sign}{at_home(value)}"


def _split_nulls(argv: list[str]) -> tuple[list[str], set[str]]:
    """Removes options with the value null from a command line.

    Returns:
        The rest, and the dotted paths that are null, unless a later option gives another value.

    Raises:
        ConfigError: an option that may be null has no value at all.
    """
    # simple-parsing cannot parse None: `--x null` is removed here and set afterwards.
    optional = {
        f"--{leaf.path}": leaf.path
        for leaf in leaves(Hparams())
        if type(None) in base_types(leaf.annotation)
    }
    kept: list[str] = []
    nulls: set[str] = set()
    position = 0
    while position < len(argv):
        option, _, value = argv[position].partition("=")
        following = argv[position + 1] if position + 1 < len(argv) else ""
        if option in optional and (value in _NULLS or (not value and following in _NULLS)):
            nulls.add(optional[option])
            position += 1 if value else 2
        elif argv[position] in optional and following[:2] in ("", "--"):
            # An unset shell variable; simple-parsing would take it for null.
            raise ConfigError(f"{option}: expected a value, or null.")
        else:
            nulls.discard(optional.get(option, ""))
            kept.append(argv[position])
            position += 1
    return kept, nulls


def _check_actions(command: Command) -> None:
    if bool(command.predict) != bool(command.images):
        raise ConfigError("--predict RUN and --images FOLDER go together.")
    if command.format and not command.export:
        raise ConfigError("--format goes with --export RUN.")
    if (command.seeds is not None or command.print_commands) and not command.study:
        raise ConfigError("--seeds and --print-commands go with --study.")
    if command.seeds is not None and command.seeds < 1:
        raise ConfigError(f"--seeds {command.seeds}: expected at least 1.")
