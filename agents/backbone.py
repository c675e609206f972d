"""Builds the backbone that the settings describe, and saves the trained one."""

from __future__ import annotations

import io
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
from utils.files import write_atomically
from utils.imports import load
from utils.run_folder import RunFolder

# With more, attention maps take too much memory, and torch's fused kernel is as fast.
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
    """Builds the chosen backbone, loads its weights and freezes the layers the settings name.

    Args:
        hparams: resolved settings.
        loaded: False keeps random weights, which a checkpoint will replace.
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
    """Puts the weights of an agent's backbones into the memory layout that is fastest on a GPU.

    Channels last makes convolutions faster on GPUs with tensor cores, and slower elsewhere.

    Args:
        agent: its values do not change.
        device: will train the agent; nothing happens on a CPU.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability() < VOLTA:
        return
    for part in agent.modules():
        if isinstance(part, Backbone):
            part.to(memory_format=part.memory_format)


def choose_attention(
    agent: nn.Module, image_size: int, precision: str, device: torch.device
) -> None:
    """Switches torch's fused attention kernel off where plain attention is faster.

    That is in bfloat16 on a CPU with few tokens; see benchmarks/cpu_attention.py. In float32 both
    take the same time, and the kernel less memory.

    Args:
        agent: its outputs change by rounding only.
        image_size: in pixels.
        precision: by Lightning's name.
        device: runs the agent.
    """
    if device.type != "cpu" or precision != "bf16-mixed":
        return
    for part in agent.modules():
        if not isinstance(part, Backbone) or (image_size / part.map_strides[-1]) ** 2 > _FEW_TOKENS:
            continue
        modules: Iterable[Any] = part.modules()
        for module in modules:
            if hasattr(module, "fused_attn"):  # timm's attention has both
                module.fused_attn = False


def save_backbone(backbone: Backbone, folder: RunFolder) -> None:
    """Writes the last weights to backbone.pth, with the keys of their public layout.

    Raises:
        OSError: it cannot be written.
    """
    state = {key: value.cpu() for key, value in backbone.net.state_dict().items()}
    content = io.BytesIO()
    torch.save(state, content)
    write_atomically(folder.backbone, content.getvalue())
