"""Whether the disk has room for what a study will write, told before its first run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agents.base import Agent
from agents.build import build_agent, build_data
from agents.commands.study.plan import ADOPTED
from agents.commands.study.runs import Run, Study
from agents.preflight import checkpoint_bytes, room_in_words
from agents.sources import build_source
from config.convert import update
from config.hparams import Hparams
from config.length import resolve_for_data
from config.resolve import resolve
from utils.console import console
from utils.nested import nested
from utils.text import count


def announce_room(study: Study) -> None:
    """Says what the checkpoints of all runs that have none yet will take, and warns of too little.

    Caches of features do not count: rows share them, and only a first image shows how large one is.
    """
    waiting = [run for run in study.runs if not study.folder_of(run.name).has_checkpoint]
    sizes: dict[str, int] = {}
    listed: dict[str, int] = {}
    for run in {run.row: run for run in waiting}.values():
        try:
            agent = _untrained(study, run, listed)
        except (OSError, ValueError):  # no images yet, say: the run will tell
            continue
        sizes[run.row] = checkpoint_bytes(agent) if agent.trains else 0
    known = [sizes[run.row] for run in waiting if run.row in sizes]
    if not known:
        return
    said, warnings = room_in_words(sum(known), study.folder)
    runs = count(len(known), "run")
    of = runs if len(known) == len(waiting) else f"{runs} (of {len(waiting)}, others are unknown)"
    console.info("checkpoints of %s: %s", of, said)
    for warning in warnings:
        console.warning("warning: %s", warning)


def _untrained(study: Study, run: Run, listed: dict[str, int]) -> Agent:
    """Builds the agent of a run.

    Args:
        study: which it belongs to.
        run: before it has started.
        listed: training images by what decides how many there are; those listed here are added.
    """
    hparams = resolve(update(Hparams(), nested(_settings(study, run)), study.name))
    source = build_source(hparams)
    data = build_data(hparams, source)
    # Of all that says where the images are only the size of a batch is left out, which many studies
    # compare: what is listed once too often costs time, once too seldom a wrong number.
    key = f"{type(data)} {replace(hparams.data, batch_size='auto')} {hparams.probe.num_images}"
    if key not in listed:
        data.setup("fit")
        listed[key] = len(data.train_files)
    # Of a GPU or not: the length of the run, which no checkpoint shows.
    hparams = resolve_for_data(hparams, listed[key], on_gpu=False)
    return build_agent(hparams, source, loaded=False)


def _settings(study: Study, run: Run) -> Mapping[str, Any]:
    """Returns what a run reads; its architecture may be that of another, not yet there."""
    found = dict(run.settings)
    for other in study.runs:
        if other.name in run.needs:
            theirs = _settings(study, other)
            found = {path: theirs[path] for path in ADOPTED & theirs.keys()} | found
    return found
