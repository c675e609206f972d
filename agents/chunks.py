"""Chooses `trainer.chunk_size` where a whole batch does not fit into memory."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from agents.base import Agent
from agents.preflight import ImageCost, images_a_process
from config.hparams import Hparams
from datamodules.base import ImageDataModule
from datamodules.self_supervised import ViewsDataModule
from utils.console import console
from utils.memory import free_mb
from utils.text import in_units

# Share of the free memory to use; the rest is for what else grows with the batch.
_SHARE = 0.75
_TOLD = "TWINSIGHT_CHUNK_SIZE"  # passes the choice to the processes that Lightning starts
_BYTES_PER_PARAMETER = 16  # weight, gradient and two moments of AdamW


def common_chunk_size(leads: bool, choose: Callable[[], int | None]) -> int | None:
    """Returns the leading process's choice, also in the processes that Lightning starts for it.

    Synchronised BatchNorm waits for every process once per chunk, so all need the same number of
    chunks. Processes started from outside (torchrun, srun) choose for themselves; `Agent.setup`
    compares their choices where it matters.

    Args:
        leads: whether this is the leading process.
        choose: chooses by the memory that is free here.
    """
    if not leads and _TOLD in os.environ:
        told = os.environ[_TOLD]
        return int(told) if told else None
    chosen = choose()
    os.environ[_TOLD] = str(chosen or "")
    return chosen


def resolve_chunk_size(
    agent: Agent,
    data: ImageDataModule,
    hparams: Hparams,
    device: torch.device,
    cost: ImageCost,
) -> int | None:
    """Returns the chunk size of a run; `auto` is resolved by doubling as long as it fits.

    Args:
        agent: the one to train.
        data: loads its images.
        hparams: resolved but for the chunk size.
        device: will train the agent.
        cost: of one image.

    Returns:
        None for the whole batch at once.
    """
    trainer = hparams.trainer
    if trainer.chunk_size != "auto":
        return None if trainer.chunk_size is None else int(trainer.chunk_size)
    if not isinstance(data, ViewsDataModule) or trainer.compile or trainer.tune_batch_size:
        return None
    batch = images_a_process(hparams)
    parameters = sum(parameter.numel() for parameter in agent.parameters())
    sharing = 1 if device.type == "cuda" else trainer.devices  # a GPU each, or one memory for all
    free = _SHARE * free_mb(device) / sharing * 2**20 - parameters * _BYTES_PER_PARAMETER
    whole = batch * sum(cost.activations) + agent.held_by_loss(batch, None)
    if whole <= free:
        return None

    def needed(chunk: int) -> float:
        return chunk * max(cost.activations) + agent.held_by_loss(batch, chunk)

    chunk = 2
    while 2 * chunk <= batch and needed(2 * chunk) <= free:
        chunk *= 2
    # At least two chunks: a single one is an ordinary pass, which keeps all activations.
    chunk = max(2, min(chunk, batch // 2))
    console.info(
        "chunk_size: the whole batch of %d would need about %.1f GB for backbone and loss, %.1f GB "
        "are free: %d images at once.",
        batch,
        whole / 1e9,
        max(0.0, free) / 1e9,
        chunk,
    )
    if (held := agent.held_by_loss(batch, 2)) > max(free, 0):
        console.warning("warning: %s", too_large(agent, held))
    return chunk


def too_large(agent: Agent, held: int) -> str:
    """Says what helps if the loss of a whole batch does not fit into memory.

    Args:
        agent: names the option that helps.
        held: bytes, see `Agent.held_by_loss`.
    """
    return (
        f"In chunks of any size the loss holds {in_units(held)}B for the whole batch, which is too "
        f"much for the memory: a run needs a smaller --data.batch_size or {agent.loss_width}."
    )
