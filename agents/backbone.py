"""From the `backbone` settings to a network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from config import names
from config.hparams import Hparams
from config.rules import settings_of
from models.backbones.base import Backbone
from models.backbones.weights import load_weights
from utils.console import console
from utils.device import VOLTA
from utils.imports import load

# Of more the maps of attention take too much memory, and torch's fused kernel is as quick.
_FEW_TOKENS = 256


def new_backbone(hparams: Hparams) -> Backbone:
    """Builds the chosen architecture with random weights."""
    settings = hparams.backbone
    row, member = names.split(settings.name)
    backbone: Backbone = load(names.BACKBONES[row])(
        *member,
        image_size=int(hparams.data.image_size),
        layers=settings.layers,
        **settings_of(hparams, "backbone.name"),
    )
    return backbone


def build_backbone(hparams: Hparams, loaded: bool = True) -> Backbone:
    """Builds the chosen backbone, loads its weights and freezes what is to be frozen.

    Args:
        hparams: resolved settings.
        loaded: False leaves it at random, for a checkpoint to fill.
    """
    settings = hparams.backbone
    backbone = new_backbone(hparams)
    report = load_weights(backbone, settings.weights, hparams.run.dir) if loaded else None
    if report:
        console.info("%s", report)
    if settings.freeze:
        backbone.freeze(settings.unfreeze_last)
    return backbone


def lay_out(agent: nn.Module, device: torch.device) -> None:
    """Lays out the weights of an agent's backbones as a GPU reads them fastest; else nothing.

    Convolutions are faster channels last where there are tensor cores, and slower elsewhere.

    Args:
        agent: no number of it changes.
        device: that will train.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability() < VOLTA:
        return
    for part in agent.modules():
        if isinstance(part, Backbone):
            part.to(memory_format=part.memory_format)


def choose_attention(
    agent: nn.Module, image_size: int, precision: str, device: torch.device
) -> None:
    """Has attention computed in plain steps where torch's fused kernel takes longer.

    That is in bfloat16 on a CPU, between few tokens; see benchmarks/cpu_attention.py. In float32
    both take the same time, and the kernel less memory.

    Args:
        agent: only the rounding of its numbers changes.
        image_size: in pixels.
        precision: of the passes, as Lightning names it.
        device: that trains or judges.
    """
    if device.type != "cpu" or precision != "bf16-mixed":
        return
    for part in agent.modules():
        if not isinstance(part, Backbone) or (image_size / part.map_strides[-1]) ** 2 > _FEW_TOKENS:
            continue
        modules: Iterable[Any] = part.modules()
        for module in modules:
            if hasattr(module, "fused_attn"):  # timm's have both ways
                module.fused_attn = False
