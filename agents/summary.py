"""What a run came to: summary.json, and the words at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.panel import Panel

from agents.base import Agent
from callbacks.gradient_agreement import GradientAgreement
from callbacks.health import Health
from callbacks.readout import Readout
from callbacks.throughput import Throughput
from callbacks.unreadable_images import UnreadableImages
from config.hparams import Hparams
from utils.logging import Chart
from utils.run_folder import RunFolder


def collect(
    trainer: pl.Trainer,
    metrics: Mapping[str, Any],
    throughput: Throughput,
    unreadable: UnreadableImages,
    status: str,
    reason: str | None,
) -> dict[str, Any]:
    """Returns the flat content of summary.json."""
    values = {name: float(value) for name, value in metrics.items()}
    return {
        "status": status,
        "reason": reason,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        **{name: value for name, value in sorted(values.items()) if math.isfinite(value)},
        "images_per_second": round(throughput.images_per_second, 2),
        "data_wait_share": round(throughput.data_wait_share, 3),
        "unreadable_images": len(unreadable.names),
        "unreadable_names": sorted(unreadable.names)[:20],
    }


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


def words_of(callbacks: Sequence[pl.Callback], metrics: Mapping[str, Any]) -> list[str]:
    """Says what callbacks have found, in sentences.

    Args:
        callbacks: of the run.
        metrics: last values by name.
    """
    readouts = [each for each in callbacks if isinstance(each, Readout)]
    agreements = [each for each in callbacks if isinstance(each, GradientAgreement)]
    return [*learnt(readouts, metrics), *(line for each in agreements for line in each.in_words())]


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
        if name in metrics and metrics[name] != readout.before.get(name, metrics[name])
    ]
    return [f"Before the first step → now: {'; '.join(found)}."] if found else []


def show(
    folder: RunFolder,
    hparams: Hparams,
    words: Sequence[str],
    result: dict[str, Any],
    hints: list[str],
    advice: str,
) -> None:
    """Prints the closing words: what was trained, what came out, where it lies, what is next.

    Args:
        folder: of the run.
        hparams: its settings.
        words: what came out, in sentences.
        result: the content of summary.json.
        hints: what loggers have to say.
        advice: options with which a run that failed can go on.
    """
    lines = [_what(hparams, result)]
    if result["reason"]:
        lines.append(result["reason"])
    lines += [*words, *result["alarms"]]
    if result["unreadable_images"]:
        names = ", ".join(result["unreadable_names"][:3])
        lines.append(f"{result['unreadable_images']} images could not be read: {names}.")
    if result["transductive"]:
        lines.append("TRANSDUCTIVE: training saw images that evaluation uses (data.split all).")
    lines += ["", f"figures      {folder.figures}", f"checkpoints  {folder.checkpoints}"]
    lines += [
        f"settings     {folder.hparams}",
        "",
        *_next(folder, hparams, result["status"], advice),
    ]
    console = Console()
    console.print(Panel("\n".join(lines), title=folder.name, expand=False), highlight=False)
    for hint in hints:  # commands with long paths, to be copied: not broken into lines
        console.print(hint, soft_wrap=True, markup=False, highlight=False)


def _what(hparams: Hparams, result: dict[str, Any]) -> str:
    what = f"{hparams.task} with {hparams.backbone.name} on {hparams.data.name}"
    if result["status"] == "finished" and not result["steps"]:
        return f"Measured, not trained: {what}, in {result['wall_seconds']:.0f} s."
    verb = {"finished": "Trained", "interrupted": "Interrupted", "failed": "FAILED"}
    return (
        f"{verb[result['status']]}: {what}, {result['steps']} steps of "
        f"{hparams.data.batch_size} images in {result['wall_seconds']:.0f} s "
        f"({result['images_per_second']:.0f} images/s, "
        f"{result['data_wait_share']:.0%} of it waiting for data)."
    )


def _next(folder: RunFolder, hparams: Hparams, status: str, advice: str) -> list[str]:
    where = "" if hparams.run.dir == "runs" else f" --run.dir {hparams.run.dir}"
    resume = f"python main.py --run.resume {folder.name}{where}"
    if status != "finished":
        return [f"Go on:     {resume} {advice}".rstrip()]
    if hparams.task == "segmentation":
        return [
            f"Next:      label your images:  python main.py --predict {folder.name} "
            f"--images FOLDER{where}",
            f"           the other protocol: python main.py --evaluate {folder.name} "
            f"--segmentation.protocol voc12_seed224{where}",
        ]
    if hparams.task == "linear_probe":
        return [
            f"Next:      compare with others: python main.py --compare {folder.name} RUN{where}"
        ]
    return [
        f"Next:      train longer:       python main.py --task {hparams.task} "
        "--trainer.max_epochs 100",
        "           your images:        python main.py --data.name image_folder --data.root FOLDER",
        f"           what it has learnt: python main.py --task segmentation --backbone.freeze true "
        f"--backbone.weights run:{folder.name}{where}",
        f"                               python main.py --task linear_probe --data.name cifar10 "
        f"--backbone.weights run:{folder.name}{where}",
    ]
