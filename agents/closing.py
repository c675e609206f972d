"""Closes a run: writes its summary, closes its loggers, and prints the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from agents.fitting import Fitting
from agents.loggers import finish
from agents.next_steps import Step
from agents.observers import Observers
from agents.summary import READOUT_SECONDS, before_and_now, collect, in_words
from config.hparams import Hparams
from config.length import images_of_step
from utils.console import console
from utils.logging import log_chart
from utils.run_folder import RunFolder
from utils.text import TRANSDUCTIVE, count

_EXPENSIVE = 0.25  # share of a run's time above which its slowest readouts are named


class Closed(NamedTuple):
    """What is left to print of a run once everything is written.

    Args:
        result: the content of summary.json.
        words: the results in sentences.
        hints: how to view what the loggers recorded.
        recorded: whether the summary could be written.
    """

    result: dict[str, Any]
    words: Sequence[str] = ()
    hints: Sequence[str] = ()
    recorded: bool = True


def close(fitting: Fitting, observers: Observers, transductive: bool) -> Closed:
    """Writes what is left to write, the summary last: a run that it calls finished is complete.

    Then closes the loggers, which may upload files of the folder.

    Args:
        fitting: has ended, in whatever way.
        observers: of the run.
        transductive: see `is_transductive`.
    """
    guard, loggers, folder = observers.guard, observers.loggers, fitting.folder
    numbers = observers.numbers
    result = collect(fitting, observers, numbers, transductive)
    if not loggers:
        return Closed(result)
    known = folder.read_summary()
    # Numbers of earlier weights, for example from --evaluate, no longer hold.
    written = (known if known.get("steps") == result["steps"] else {}) | result
    chart = before_and_now(observers.callbacks, written)
    guard.attempt("readouts", partial(log_chart, fitting.trainer, "readouts", chart))
    said = partial(in_words, fitting.agent, observers.callbacks, written)
    written["in_words"] = guard.attempt("closing words", said) or []
    for logger in loggers:
        _attempt(partial(logger.finalize, result["status"]))
    failed_before = _counts(known.get("readout_failures"))
    for report in observers.reports:
        written["readout_failures"] = dict(failed_before + guard.failures)
        guard.attempt("report", partial(report.write, written))
    written["readout_failures"] = dict(failed_before + guard.failures)
    recorded = _attempt(partial(folder.write_summary, written))
    # The loggers already have the measured numbers.
    facts = {name: value for name, value in written.items() if name not in numbers}
    hints: list[str] = []
    _attempt(lambda: hints.extend(finish(loggers, folder, facts)))
    return Closed(result, [*written["in_words"], *guard.in_words()], hints, recorded)


def _counts(value: Any) -> Counter[str]:
    """Returns counts by name from a file that may have been edited."""
    items = value.items() if isinstance(value, Mapping) else ()
    return Counter({name: number for name, number in items if isinstance(number, int)})


def _attempt(step: Callable[[], None]) -> bool:
    # A failure is reported, and does not keep the other steps from running.
    try:
        step()
    except Exception as error:  # whatever it is, the training is over
        console.warning("warning: %s", error)
        return False
    return True


def show(folder: RunFolder, hparams: Hparams, closed: Closed, steps: Sequence[Step]) -> None:
    """Prints the closing words: what was trained, the results, where they are, what is next.

    Args:
        folder: of the run.
        hparams: its settings.
        closed: its results.
        steps: what to do next.
    """
    result = closed.result
    lines = [_what(hparams, result), *_took(result)]
    if result["reason"]:
        lines.append(result["reason"])
    lines += [*closed.words, *result["alarms"]]
    if result["unreadable_images"]:
        names = ", ".join(result["unreadable_names"][:3])
        lines.append(f"{count(result['unreadable_images'], 'image')} could not be read: {names}.")
    if result["transductive"]:
        lines.append(f"TRANSDUCTIVE: {TRANSDUCTIVE}.")
    terminal = Console()
    # Text, because names may look like markup.
    box = Panel(Text("\n".join(lines)), title=Text(folder.name), expand=False)
    terminal.print(box, highlight=False)
    places = {
        "report": folder.report,
        "figures": folder.figures,
        "checkpoints": folder.checkpoints,
        "settings": folder.hparams,
    }
    below = [f"{what:12} {place}" for what, place in places.items() if place.exists()]
    below += [line for step in steps for line in (f"Next: {step.what}", f"    {step.command}")]
    for line in [*below, *closed.hints]:  # to be copied, so not wrapped
        terminal.print(line, soft_wrap=True, markup=False, highlight=False)


def _what(hparams: Hparams, result: Mapping[str, Any]) -> str:
    what = f"{hparams.task} with {hparams.backbone.name} on {hparams.data.name}"
    if result["status"] == "finished" and not result["steps"]:
        return f"Measured, not trained: {what}, in {result['wall_seconds']:.0f} s."
    verb = {"finished": "Trained", "interrupted": "Interrupted", "failed": "FAILED"}
    return (
        f"{verb[result['status']]}: {what}, {count(result['steps'], 'step')} of "
        f"{images_of_step(hparams)} images, in {result['wall_seconds']:.0f} s."
    )


def _took(result: Mapping[str, Any]) -> list[str]:
    if not result["images_per_second"]:  # nothing was trained, or too briefly to be measured
        return []
    others = {
        "preparation": result["preparation_seconds"],
        "validation and checkpoints": result["validation_seconds"],
        "readouts and pictures": result["readout_seconds"],
        "test": result["test_seconds"],
    }
    lines = [
        f"Training {result['training_seconds']:.0f} s ({result['images_per_second']:.0f} images/s, "
        f"{result['data_wait_share']:.0%} of it waiting for data)"
        + "".join(f", {what} {seconds:.0f} s" for what, seconds in others.items() if seconds >= 0.5)
        + "."
    ]
    if result["readout_seconds"] > _EXPENSIVE * result["wall_seconds"]:
        each = [item for item in result.items() if item[0].startswith(READOUT_SECONDS)]
        named = (f"{name.removeprefix(READOUT_SECONDS)} {taken:.0f} s" for name, taken in each[:3])
        lines.append(
            f"Most of the readouts: {', '.join(named)} (less often: "
            "--callbacks.NAME.every_n_epochs or every_n_steps, not at all: "
            "--callbacks.NAME.enabled false)."
        )
    return lines
