"""Trains, evaluates and compares runs: `python main.py --help`. Settings: config/hparams.py."""
# PYTHON_ARGCOMPLETE_OK

import io
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from config.edited import load_parser, lost_setting

if TYPE_CHECKING:
    from config.parsing import Command

_SETUP = """{problem}. Set the project up and run it with
    make run
or, without make:
    python3 -m venv .venv && .venv/bin/pip install -r requirements.txt
    .venv/bin/python main.py"""
_SETUP_ON_WINDOWS = r"""{problem}. Set the project up and run it with
    py -m venv .venv
    .venv\Scripts\python -m pip install -r requirements.txt
    .venv\Scripts\python main.py"""


def main(argv: Sequence[str]) -> int:
    """Runs one command line.

    Returns:
        The exit code: 0 done, 1 the run failed, 2 the request could not be carried out, 130
        interrupted; a training that had begun is saved.
    """
    # Some terminals and log files cannot encode every sign in names, units and results.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    # A terminal that does not know its width says 0: rich believes it, and prints nothing.
    if os.environ.get("COLUMNS") == "0":
        del os.environ["COLUMNS"]
    command: Command | str = ""
    try:
        parse = load_parser()
        if "_ARGCOMPLETE" in os.environ:  # the shell asks for completions
            from config.completion import complete

            complete()
        command = parse(argv)
        if isinstance(command, str):
            print(command, flush=True)
            return 0
        set_up_allocator()
        # `!python main.py` inherits a notebook's backend, which may not be installed here.
        os.environ["MPLBACKEND"] = "agg"
        # Only now that the settings are checked: importing torch takes seconds.
        from agents.commands.execute import execute

        return execute(command)
    except BrokenPipeError:
        # The reader closed the pipe (`… | head`): keep Python from complaining when it flushes.
        # A help text may be cut short like this; a training or test has then not finished.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0 if isinstance(command, str) or command.print_commands else 1
    except KeyboardInterrupt as stop:  # a training that has begun handles its own
        if "--debug" in argv:
            raise
        print("Interrupted.", *stop.args, file=sys.stderr)
        return 130
    except (ImportError, AttributeError, ValueError, OSError) as error:
        explanation = _explained(error)
        if "--debug" in argv or not explanation:
            raise
        print(explanation, file=sys.stderr)
        return 2


def _explained(error: Exception) -> str:
    """Says what to do about an error; empty for mistakes in this project's code."""
    if isinstance(error, AttributeError):
        lost = lost_setting(error)
        return f"error: {lost}" if lost else ""
    if not isinstance(error, ImportError):
        return f"error: {error}"
    package = (error.name or "").partition(".")[0]
    if package and (Path(__file__).parent / package).is_dir():
        return ""
    problem = f"This Python cannot load a package: {error}"
    if isinstance(error, ModuleNotFoundError):
        problem = f"This Python lacks {error.name}"
    setup = _SETUP_ON_WINDOWS if sys.platform == "win32" else _SETUP
    return setup.format(problem=problem)


def set_up_allocator() -> None:
    """Lets torch grow its GPU memory segments against fragmentation, unless the user chose.

    CUDA reads the variable when it starts. On WSL2, whose kernel has `microsoft` in its name, some
    GPUs do not start with it (github.com/pytorch/pytorch/issues/192330).
    """
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    supported = sys.platform == "linux" and "microsoft" not in platform.release().lower()
    if supported and not any(name in os.environ for name in names):
        os.environ[names[0]] = "expandable_segments:True"


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 (older Pythons stop here)
        sys.exit("Python 3.11 or newer is needed; this is " + sys.version.split()[0])
    from utils.console import outlive_terminal

    for stream in filter(None, (sys.stdout, sys.stderr)):
        outlive_terminal(stream)
    sys.exit(main(sys.argv[1:]))
