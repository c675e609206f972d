"""The results of a run: the content of summary.json, in numbers and in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl

from agents.base import Agent
from agents.fitting import Fitting
from agents.observers import Observers
from callbacks.gradient_agreement import GradientAgreement
from callbacks.health import Health
from callbacks.readout import Readout
from callbacks.throughput import Throughput
from utils.logging import Chart
from utils.stopwatch import Stopwatch

READOUT_SECONDS = "readout_seconds/"  # prefix of the seconds of each readout


def collect(
    fitting: Fitting, observers: Observers, numbers: Mapping[str, float], transductive: bool
) -> dict[str, Any]:
    """Returns the flat content of summary.json.

    Args:
        fitting: has ended.
        observers: of the run.
        numbers: those of `observers`.
        transductive: see `is_transductive`.
    """
    trainer, throughput, unreadable = fitting.trainer, observers.throughput, observers.unreadable
    return {
        "status": fitting.end.status,
        "reason": fitting.end.reason,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        **{name: value for name, value in numbers.items() if math.isfinite(value)},
        "images_per_second": round(throughput.images_per_second, 2),
        "data_wait_share": round(throughput.data_wait_share, 3),
        **_seconds(throughput, fitting.stopwatch),
        "unreadable_images": len(unreadable.names),
        "unreadable_names": sorted(unreadable.names)[:20],
        **fitting.agent.facts,
        **_of_callbacks(observers.callbacks),
        **_by_readout(fitting.stopwatch.group("readouts")),
        "transductive": transductive,
        "peak_memory_mb": round(max(fitting.peak_mb, throughput.peak_mb)),
        "wall_seconds": round(sum(fitting.stopwatch.seconds.values()), 1),
    }


def _seconds(throughput: Throughput, stopwatch: Stopwatch) -> dict[str, float]:
    fitting = stopwatch.seconds["fitting"]
    # On a GPU the seconds of steps may include readouts, those of fitting do not.
    training = min(throughput.seconds, fitting)
    found = {
        "preparation_seconds": stopwatch.seconds["preparation"],
        "training_seconds": training,
        # What is left: validation, and checkpoints, also the file that is written after fitting.
        "validation_seconds": fitting - training + stopwatch.seconds["between"],
        "readout_seconds": stopwatch.total("readouts"),
        "test_seconds": stopwatch.seconds["test"],
    }
    return {name: round(seconds, 1) for name, seconds in found.items()}


def _of_callbacks(callbacks: Sequence[pl.Callback]) -> dict[str, Any]:
    """Returns the results of callbacks that are not logged as metrics."""
    found: dict[str, Any] = {"alarms": []}
    for each in callbacks:
        if isinstance(each, Health):
            found["alarms"] += each.alarms.values()
        elif isinstance(each, Readout):
            found |= {f"before/{name}": value for name, value in each.before.items()}
        elif isinstance(each, GradientAgreement):
            found |= {f"train/{name}": value for name, value in each.numbers().items()}
    return found


def _by_readout(seconds: Mapping[str, float]) -> dict[str, float]:
    """Returns the seconds that each readout took, the most expensive first."""
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return {f"{READOUT_SECONDS}{name}": round(taken, 1) for name, taken in ordered}


def goals(agent: Agent, callbacks: Sequence[pl.Callback]) -> dict[str, str]:
    """Returns the numbers that matter, each with `max` or `min`, whichever is best."""
    read = {
        name: "max" for each in callbacks if isinstance(each, Readout) for name in each.headlines
    }
    return read | dict([agent.monitor] if agent.monitor else [])


def before_and_now(callbacks: Sequence[pl.Callback], metrics: Mapping[str, Any]) -> Chart:
    """Returns a table of the readouts before the first step and now.

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
    """Says the results in sentences.

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
    """Says in one sentence how the readouts have changed since before the first step.

    Args:
        readouts: of the run.
        metrics: last values by name.
    """
    found = [
        f"{words} {readout.before[name]:z.2f} → {metrics[name]:z.2f}"
        for readout in readouts
        for name, words in readout.headlines.items()
        if name in metrics and _changed(readout.before.get(name), metrics[name])
    ]
    return [f"Before the first step → now: {'; '.join(found)}."] if found else []


def _changed(before: float | None, now: float) -> bool:
    # Logged values are rounded to float32.
    return before is not None and not math.isclose(before, now, rel_tol=1e-6)
