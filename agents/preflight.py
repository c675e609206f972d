"""Says before a run what it will need: compute and memory of a step, and disk space."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from agents.base import Agent
from config.announcement import choices, length
from config.hparams import Hparams
from config.resolve import processes_of
from datamodules.base import ImageDataModule
from datamodules.self_supervised import ViewsDataModule
from models.memory.footprint import bytes_per_image, flops
from utils.console import console
from utils.device import is_mixed
from utils.rng import CPU, rng_preserved
from utils.text import in_units

_KEPT = 3  # checkpoints of a run: best, last, previous
# Bytes per weight: a trained one has two moments beside it in AdamW, which stores the most.
_TRAINED_BYTES, _FROZEN_BYTES = 12, 4


class ImageCost:
    """What the backbone needs for one image of the data set, measured on the CPU on demand.

    Args:
        agent: as it will train.
        data: loads its images.
    """

    def __init__(self, agent: Agent, data: ImageDataModule) -> None:
        self._agent = agent
        self._backbone = agent.trained_backbone
        self._mixed = is_mixed(agent.settings.trainer.precision)
        self._loaded: tuple[int, ...] = (data.image_size,)
        if isinstance(data, ViewsDataModule):
            self._loaded = data.views.sizes
        self._sides = self._padded(agent.passes(self._loaded))

    def _padded(self, sides: tuple[int, ...]) -> tuple[int, ...]:
        multiple = self._backbone.patch_multiple  # segmentations pad their crops to it
        return tuple(-(-side // multiple) * multiple for side in sides)

    def flops(self, chunks: int) -> float | None:
        """Returns the operations of a training step; None where they cannot be counted.

        Args:
            chunks: see `Agent.passes_again`.
        """
        try:
            with rng_preserved(CPU):
                counted = {side: flops(self._backbone, side) for side in set(self._sides)}
        except Exception as error:  # torch's counter may fail in any module; a run does not need it
            console.info("Operations cannot be counted: %s", error)
            return None
        again = self._padded(self._agent.passes_again(self._loaded, chunks))
        passes = sum(counted[side].forth for side in (*self._sides, *again))
        return passes + sum(counted[side].back for side in self._sides)

    @cached_property
    def activations(self) -> tuple[float, ...]:
        """Bytes of activations kept for the gradient, for each view."""
        with rng_preserved(CPU):
            kept = {
                side: bytes_per_image(self._backbone, side, self._mixed)
                for side in set(self._sides)
            }
        return tuple(kept[side] for side in self._sides)


def images_a_process(hparams: Hparams) -> int:
    """Returns how many images of a batch each process gets."""
    return int(hparams.data.batch_size) // processes_of(hparams)


def announce(
    given: Hparams, agent: Agent, images: int, cost: ImageCost, tried_out: bool = False
) -> None:
    """Says what was chosen, how long the run will be, and what it needs.

    Args:
        given: settings as the user gave them.
        agent: will be trained, with these settings resolved.
        images: number of training images.
        cost: of one of them.
        tried_out: whether it is a try-out, for which warnings about learning are left out.
    """
    if words := choices(given, agent.settings):
        console.info("%s", words)
    line, of_length = length(agent.settings, images)
    said = [(line, [] if tried_out else [*of_length, *agent.warnings()])]
    if agent.trains:
        said.append(_needs(cost, agent))
    for line, _ in said:
        console.info("%s", line)
    for warning in (each for _, warnings in said for each in warnings):
        console.warning("warning: %s", warning)


def _needs(cost: ImageCost, agent: Agent) -> tuple[str, list[str]]:
    """Returns what a run needs in one line, and warnings about what is scarce."""
    hparams, size = agent.settings, agent.settings.trainer.chunk_size
    chunk = size if isinstance(size, int) else None
    batch, share = int(hparams.data.batch_size), images_a_process(hparams)
    kept = min(chunk, share) * max(cost.activations) if chunk else share * sum(cost.activations)
    room, warnings = room_in_words(disk_needed([checkpoint_bytes(agent)]), Path(hparams.run.dir))
    keeps = f", which keeps {in_units(kept)}B of activations" if kept else ", which is frozen"
    if kept and processes_of(hparams) > 1:
        keeps += " in each process"
    held = agent.held_by_loss(share, chunk)
    loss = f"; the loss holds {in_units(held)}B" if held else ""
    flops = cost.flops(-(-share // chunk) if chunk else 0)
    images = batch * hparams.trainer.accumulate
    operations = "" if flops is None else f"{in_units(images * flops)}FLOP in "
    if flops == 0:
        operations, keeps = "nothing in ", ", whose features are computed once"
    line = f"a step: {operations}the backbone{keeps}{loss}; checkpoints: {room}"
    return line, warnings


def checkpoint_bytes(agent: Agent) -> int:
    """Returns the bytes that a checkpoint takes at most."""
    sizes = [(each.numel(), each.requires_grad) for each in agent.parameters()]
    return sum(size * (_TRAINED_BYTES if learns else _FROZEN_BYTES) for size, learns in sizes)


def disk_needed(checkpoints: Sequence[int]) -> int:
    """Returns the bytes that the checkpoints of runs, one after another, take at most.

    Args:
        checkpoints: bytes of a checkpoint of each run; not empty.
    """
    # The next one is written beside those that are kept.
    return _KEPT * sum(checkpoints) + max(checkpoints)


def room_in_words(needed: int, folder: Path) -> tuple[str, list[str]]:
    """Returns how much disk space will be taken, and a warning if there is too little.

    Args:
        needed: bytes.
        folder: where they will be written; it need not exist yet.
    """
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(existing).free
    line = f"up to {in_units(needed)}B of {in_units(free)}B that are free."
    if needed < free:
        return line, []
    return line, [
        f"The disk of {folder} will be full before the end: free some of it, or write elsewhere "
        "with --run.dir."
    ]
