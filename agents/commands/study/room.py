"""Checks before a study's first run whether the disk has room for what it will write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agents.base import Agent
from agents.build import build_agent, build_data
from agents.commands.study.plan import ADOPTED
from agents.commands.study.runs import Run, Study
from agents.preflight import checkpoint_bytes, disk_needed, room_in_words
from agents.sources import build_source
from config.hparams import Hparams
from config.length import resolve_for_data
from config.resolve import resolve
from config.settings_tree import update
from utils.console import console
from utils.nested import nested
from utils.text import count


def announce_room(study: Study) -> None:
    """Says how much the checkpoints still to be written will take, and warns if space is short.

    Feature caches do not count: rows share them, and their size is unknown before the first image.
    """
    waiting = [run for run in study.runs if not study.folder_of(run.name).has_checkpoint]
    sizes: dict[str, int] = {}
    listed: dict[str, int] = {}
    for run in {run.row: run for run in waiting}.values():
        try:
            agent = _untrained(study, run, listed)
        except (OSError, ValueError):  # for example no images yet: the run will report it
            continue
        sizes[run.row] = checkpoint_bytes(agent) if agent.trains else 0
    known = [sizes[run.row] for run in waiting if run.row in sizes]
    if not known:
        return
    said, warnings = room_in_words(disk_needed(known), study.folder)
    runs = count(len(known), "run")
    of = runs if len(known) == len(waiting) else f"{runs} (of {len(waiting)}, others are unknown)"
    console.info("checkpoints of %s: %s", of, said)
    for warning in warnings:
        console.warning("warning: %s", warning)


def _untrained(study: Study, run: Run, listed: dict[str, int]) -> Agent:
    """Builds the agent of a run.

    Args:
        study: of the run.
        run: has not started yet.
        listed: numbers of training images already counted; this run's is added.
    """
    hparams = resolve(update(Hparams(), nested(_settings(study, run)), study.name))
    source = build_source(hparams)
    data = build_data(hparams, source)
    # The settings that decide the images, without the batch size, which many studies vary. Listing
    # once too often costs time, but once too seldom gives a wrong number.
    key = f"{type(data)} {replace(hparams.data, batch_size='auto')} {hparams.probe.num_images}"
    if key not in listed:
        data.setup("fit")
        listed[key] = len(data.train_files)
    # On a GPU or not: that only changes the length of the run, not its checkpoints.
    hparams = resolve_for_data(hparams, listed[key], on_gpu=False)
    return build_agent(hparams, source, loaded=False)


def _settings(study: Study, run: Run) -> Mapping[str, Any]:
    """Returns a run's settings, with the architecture of the run it starts from, if any."""
    found = dict(run.settings)
    for other in study.runs:
        if other.name in run.needs:
            theirs = _settings(study, other)
            found = {path: theirs[path] for path in ADOPTED & theirs.keys()} | found
    return found
