"""What a run came to: summary.json, and the words at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from agents.base import Agent
from agents.fitting import End
from agents.next_steps import Step
from callbacks.gradient_agreement import GradientAgreement
from callbacks.health import Health
from callbacks.readout import Readout
from callbacks.throughput import Throughput
from callbacks.unreadable_images import UnreadableImages
from config.hparams import Hparams
from utils.logging import Chart
from utils.run_folder import RunFolder
from utils.stopwatch import Stopwatch
from utils.text import count

_READOUT = "readout_seconds/"
_EXPENSIVE = 0.25  # of a run; from there on its readouts are named with what they take


class Observed(NamedTuple):
    """What was observed of a run beside its numbers.

    Args:
        throughput: of its training steps.
        unreadable: images.
        stopwatch: of `fitting`, `readouts` and `test`.
    """

    throughput: Throughput
    unreadable: UnreadableImages
    stopwatch: Stopwatch


def collect(
    trainer: pl.Trainer, metrics: Mapping[str, Any], observed: Observed, end: End
) -> dict[str, Any]:
    """Returns the flat content of summary.json.

    Args:
        trainer: of the run.
        metrics: last values by name.
        observed: beside them.
        end: how the run ended.
    """
    throughput, unreadable, stopwatch = observed
    values = {name: float(value) for name, value in metrics.items()}
    return {
        "status": end.status,
        "reason": end.reason,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        **{name: value for name, value in sorted(values.items()) if math.isfinite(value)},
        "images_per_second": round(throughput.images_per_second, 2),
        "data_wait_share": round(throughput.data_wait_share, 3),
        **_seconds(throughput, stopwatch),
        "unreadable_images": len(unreadable.names),
        "unreadable_names": sorted(unreadable.names)[:20],
    }


def _seconds(throughput: Throughput, stopwatch: Stopwatch) -> dict[str, float]:
    # What a readout takes inside of a step is the readout's.
    training = min(throughput.seconds, stopwatch.seconds["fitting"])
    found = {
        "training_seconds": training,
        # What is left of fitting: validation, and checkpoints.
        "validation_seconds": max(0.0, stopwatch.seconds["fitting"] - training),
        "readout_seconds": stopwatch.seconds["readouts"],
        "test_seconds": stopwatch.seconds["test"],
    }
    return {name: round(seconds, 1) for name, seconds in found.items()}


def of_callbacks(callbacks: Sequence[pl.Callback]) -> dict[str, Any]:
    """Returns what callbacks have for summary.json that is no metric of Lightning."""
    found: dict[str, Any] = {"alarms": []}
    for each in callbacks:
        if isinstance(each, Health):
            found["alarms"] += each.alarms.values()
        elif isinstance(each, Readout):
            found |= {f"before/{name}": value for name, value in each.before.items()}
        elif isinstance(each, GradientAgreement):
            found |= {f"train/{name}": value for name, value in each.numbers().items()}
    return found


def by_readout(seconds: Mapping[str, float]) -> dict[str, float]:
    """Returns the seconds that each readout took, for summary.json, the most expensive first."""
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return {f"{_READOUT}{name}": round(taken, 1) for name, taken in ordered}


def goals(agent: Agent, callbacks: Sequence[pl.Callback]) -> dict[str, str]:
    """Returns the numbers that matter, each with `max` or `min`, whichever is best."""
    read = {
        name: "max" for each in callbacks if isinstance(each, Readout) for name in each.headlines
    }
    return read | dict([agent.monitor] if agent.monitor else [])


def before_and_now(callbacks: Sequence[pl.Callback], metrics: Mapping[str, Any]) -> Chart:
    """Returns what was measured before the first step beside what it has become.

    Args:
        callbacks: of the run.
        metrics: last values by name.
    """
    rows = [
        (name, before, metrics.get(name))
        for each in callbacks
        if isinstance(each, Readout)
        for name, before in each.before.items()
    ]
    return Chart("Readouts", ("number", "before the first step", "now"), rows)


def in_words(
    agent: Agent, callbacks: Sequence[pl.Callback], metrics: Mapping[str, Any]
) -> list[str]:
    """Says what came out, in sentences.

    Args:
        agent: of the run.
        callbacks: of the run.
        metrics: last values by name.
    """
    readouts = [each for each in callbacks if isinstance(each, Readout)]
    agreements = [each for each in callbacks if isinstance(each, GradientAgreement)]
    found = [*agent.in_words(metrics), *learnt(readouts, metrics)]
    return [*found, *(line for each in agreements for line in each.in_words())]


def learnt(readouts: Sequence[Readout], metrics: Mapping[str, Any]) -> list[str]:
    """Says in one sentence what became of the numbers that were measured before the first step.

    Args:
        readouts: of the run.
        metrics: last values by name.
    """
    found = [
        f"{words} {readout.before[name]:.2f} → {metrics[name]:.2f}"
        for readout in readouts
        for name, words in readout.headlines.items()
        if name in metrics and _changed(readout.before.get(name), metrics[name])
    ]
    return [f"Before the first step → now: {'; '.join(found)}."] if found else []


def _changed(before: float | None, now: float) -> bool:
    # What is logged is float32.
    return before is not None and not math.isclose(before, now, rel_tol=1e-6)


def show(
    folder: RunFolder,
    hparams: Hparams,
    words: Sequence[str],
    result: dict[str, Any],
    hints: Sequence[str],
    steps: Sequence[Step],
) -> None:
    """Prints the closing words: what was trained, what came out, where it lies, what is next.

    Args:
        folder: of the run.
        hparams: its settings.
        words: what came out, in sentences.
        result: the content of summary.json.
        hints: what loggers have to say.
        steps: what to do next.
    """
    lines = [_what(hparams, result), *_took(result)]
    if result["reason"]:
        lines.append(result["reason"])
    lines += [*words, *result["alarms"]]
    if result["unreadable_images"]:
        names = ", ".join(result["unreadable_names"][:3])
        lines.append(f"{count(result['unreadable_images'], 'image')} could not be read: {names}.")
    if result["transductive"]:
        lines.append("TRANSDUCTIVE: training saw images that evaluation uses (data.split all).")
    console = Console()
    # Text: names may hold what looks like markup.
    box = Panel(Text("\n".join(lines)), title=Text(folder.name), expand=False)
    console.print(box, highlight=False)
    places = {
        "figures": folder.figures,
        "checkpoints": folder.checkpoints,
        "settings": folder.hparams,
    }
    below = [f"{what:12} {place}" for what, place in places.items()]
    below += [line for step in steps for line in (f"Next: {step.what}", f"    {step.command}")]
    for line in [*below, *hints]:  # to be copied: not broken into lines
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _what(hparams: Hparams, result: Mapping[str, Any]) -> str:
    what = f"{hparams.task} with {hparams.backbone.name} on {hparams.data.name}"
    if result["status"] == "finished" and not result["steps"]:
        return f"Measured, not trained: {what}, in {result['wall_seconds']:.0f} s."
    verb = {"finished": "Trained", "interrupted": "Interrupted", "failed": "FAILED"}
    return (
        f"{verb[result['status']]}: {what}, {count(result['steps'], 'step')} of "
        f"{hparams.data.batch_size} images, in {result['wall_seconds']:.0f} s."
    )


def _took(result: Mapping[str, Any]) -> list[str]:
    if not result["images_per_second"]:  # seconds are rounded: those of three tiny steps to none
        return []
    others = {
        "validation and checkpoints": result["validation_seconds"],
        "readouts and pictures": result["readout_seconds"],
        "test": result["test_seconds"],
    }
    lines = [
        f"Training {result['training_seconds']:.0f} s ({result['images_per_second']:.0f} images/s, "
        f"{result['data_wait_share']:.0%} of it waiting for data)"
        + "".join(f", {what} {seconds:.0f} s" for what, seconds in others.items() if seconds)
        + "."
    ]
    if result["readout_seconds"] > _EXPENSIVE * result["wall_seconds"]:
        each = [item for item in result.items() if item[0].startswith(_READOUT)]
        named = (f"{name.removeprefix(_READOUT)} {taken:.0f} s" for name, taken in each[:3])
        lines.append(f"Most of the readouts: {', '.join(named)} (--callbacks.NAME: how often).")
    return lines
