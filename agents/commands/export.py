"""A run's backbone for the world outside: safetensors with the key names of its public layout."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from safetensors.torch import save
from torch import Tensor

from models.backbones.base import Backbone
from utils.files import write_atomically
from utils.run_folder import RunFolder


def check_finished(folder: RunFolder) -> None:
    """Checks that there is something to export.

    Raises:
        ValueError: the run did not come to its end.
    """
    if not folder.finished:
        status = folder.read_summary().get("status", "not finished")
        raise ValueError(
            f"--export {folder.name}: the run is {status}, its backbone is not what it will be. "
            f"Finish it first: --run.resume {folder.name}"
        )


def export(agent: pl.LightningModule, folder: RunFolder) -> list[str]:
    """Writes backbone.safetensors.

    Args:
        agent: of the run, with its last weights.
        folder: the run's.

    Returns:
        What to print: the file and how to load it, here and with plain timm.
    """
    backbone: Any = agent.backbone
    state = {k: v.detach().cpu().contiguous().clone() for k, v in backbone.net.state_dict().items()}
    lines = recipe(backbone, folder)
    about = {"run": folder.name, "load": "\n".join(lines)}
    write_atomically(folder.exported, save(state, about))
    mean, std = (_numbers(each) for each in (backbone.mean, backbone.std))
    size = folder.exported.stat().st_size / 1e6
    return [
        f"{folder.exported}: {len(state)} tensors, {size:.0f} MB.",
        f"Use it here:      --backbone.weights run:{folder.name}",
        f"Use it elsewhere, on images in 0 … 1, {mean} taken out and divided by {std}:",
        *(f"    {line}" for line in lines),
    ]


def _numbers(values: Tensor) -> str:
    return " ".join(f"{value:.4g}" for value in values.flatten().tolist())


def recipe(backbone: Backbone, folder: RunFolder) -> list[str]:
    """Returns the lines of Python that load the file."""
    load = f'load_file("{folder.exported}")'
    if backbone.plain is None:
        name = type(backbone).__name__
        return [
            f"# timm and torchvision have no {name} like this one: the tensors alone.",
            "from safetensors.torch import load_file",
            f"state = {load}",
        ]
    return [
        f"import {backbone.plain.partition('.')[0]}",
        "from safetensors.torch import load_file",
        f"model = {backbone.plain}",
        f"model.load_state_dict({load})",
    ]
