"""Trains, evaluates and compares runs: `python main.py --help`. Settings: config/hparams.py."""
# PYTHON_ARGCOMPLETE_OK

import io
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from config.edited import check_readable, lost_setting, mistake

if TYPE_CHECKING:
    from config.parsing import Command

_SETUP = """{problem}. Set the project up and run it with
    make run
or, without make:
    python3 -m venv .venv && .venv/bin/pip install -r requirements.txt
    .venv/bin/python main.py"""


def main(argv: Sequence[str]) -> int:
    """Runs one command line.

    Returns:
        The exit code: 0 done, 1 the run failed, 2 the request could not be carried out, 130
        interrupted; a training that had begun is saved.
    """
    # Names, units and results have signs that not every terminal or log file can spell.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    # Of a terminal that does not know its width; rich takes it at its word, and prints nothing.
    if os.environ.get("COLUMNS") == "0":
        del os.environ["COLUMNS"]
    command: Command | str = ""
    try:
        parse = _parser()
        if "_ARGCOMPLETE" in os.environ:  # a shell asks what may follow
            from config.completion import complete

            complete()
        command = parse(argv)
        if isinstance(command, str):
            print(command, flush=True)
            return 0
        set_up_allocator()
        # A notebook's own, which `!python main.py` inherits, need not be installed here.
        os.environ["MPLBACKEND"] = "agg"
        # Only now, when the settings are known to be possible: what is imported takes seconds.
        from agents.commands.execute import execute

        return execute(command)
    except BrokenPipeError:
        # What is printed was more than its reader wanted (`… | head`). Python would complain when
        # it flushes the rest. What trains or tests is not done with it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0 if isinstance(command, str) or command.print_commands else 1
    except KeyboardInterrupt as stop:  # a training that has begun takes it for itself
        if "--debug" in argv:
            raise
        print("Interrupted.", *stop.args, file=sys.stderr)
        return 130
    except ImportError as error:
        if "--debug" in argv or _is_own(error):
            raise
        problem = f"This Python cannot load a package: {error}"
        if isinstance(error, ModuleNotFoundError):
            problem = f"This Python lacks {error.name}"
        print(_SETUP.format(problem=problem), file=sys.stderr)
        return 2
    except AttributeError as error:
        if "--debug" in argv or not (lost := lost_setting(error)):
            raise
        print(f"error: {lost}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        if "--debug" in argv:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> "Callable[[Sequence[str]], Command | str]":
    """Returns what reads a command line.

    Raises:
        ModuleNotFoundError: the project is not set up.
        ValueError: config/hparams.py, which is edited by hand, cannot be read; says where.
    """
    try:
        check_readable()
        from config.parsing import parse
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name != "config.hparams":
            raise
        raise ValueError(mistake(error)) from error
    return parse


def _is_own(error: ImportError) -> bool:
    """Whether a part of this project was to be imported, so that its code is what is wrong."""
    package = (error.name or "").partition(".")[0]
    return bool(package) and (Path(__file__).parent / package).is_dir()


def set_up_allocator() -> None:
    """Lets torch's segments of GPU memory grow instead of leaving gaps, unless the user chose.

    It is read when CUDA starts. In WSL2, whose kernel has `microsoft` in its name, several cards do
    not even begin with it (github.com/pytorch/pytorch/issues/192330).
    """
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    able = sys.platform == "linux" and "microsoft" not in platform.release().lower()
    if able and not any(name in os.environ for name in names):
        os.environ[names[0]] = "expandable_segments:True"


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 (this is where an older Python is told so)
        sys.exit("Python 3.11 or newer is needed; this is " + sys.version.split()[0])
    from utils.console import outlive_terminal

    for stream in filter(None, (sys.stdout, sys.stderr)):
        outlive_terminal(stream)
    sys.exit(main(sys.argv[1:]))
