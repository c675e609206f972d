"""Published weights of Vision Transformers: where they are, and how to fit them to our images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch

from models.backbones.base import IMAGENET_MEAN, IMAGENET_STD, StateDict
from models.backbones.timm_base import pretrained
from utils.weight_files import download

_DINO = "https://dl.fbaipublicfiles.com/dino/"
_DINO_FILES = {
    ("vit_small", 16): "dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
    ("vit_small", 8): "dino_deitsmall8_pretrain/dino_deitsmall8_pretrain.pth",
    ("vit_base", 16): "dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
    ("vit_base", 8): "dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth",
}


def published_for(name: str, patch_size: int) -> dict[str, Callable[[], StateDict]]:
    """Returns functions that fetch weights for a ViT, by their name in `backbone.weights`.

    Args:
        name: of the architecture; timm's weights have a patch size of 16.
        patch_size: must match for DINO's weights; timm's are resized.
    """
    found: dict[str, Callable[[], StateDict]] = {
        "pretrained": partial(_published, f"{name}_patch16_224")
    }
    if (name, patch_size) in _DINO_FILES:
        found["dino"] = partial(download, _DINO + _DINO_FILES[name, patch_size])
    return found


def _published(model: str) -> StateDict:
    """Fetches a ViT's weights from timm, for images normalised as ours are."""
    about: Any = timm.get_pretrained_cfg(model)
    return for_our_images(pretrained(model), about.mean, about.std)


def for_our_images(state: StateDict, mean: tuple[float, ...], std: tuple[float, ...]) -> StateDict:
    """Folds another image normalisation into the patch embedding of a ViT, exactly.

    Args:
        state: of a network that was trained on (pixels - mean) / std.
        mean: of each channel, for pixels between 0 and 1.
        std: of each channel.

    Returns:
        The same network for images normalised with ImageNet's mean and standard deviation.
    """
    theirs, deviation = torch.tensor(mean), torch.tensor(std)
    scale = torch.tensor(IMAGENET_STD) / deviation
    shift = (torch.tensor(IMAGENET_MEAN) - theirs) / deviation
    weight, bias = (state[f"patch_embed.proj.{name}"] for name in ("weight", "bias"))
    return {
        **state,
        "patch_embed.proj.weight": weight * scale.view(1, 3, 1, 1),
        "patch_embed.proj.bias": bias + weight.sum((2, 3)) @ shift,
    }
