"""Finds out the output shapes of a network of timm by running a sketch of it.

A sketch lies on torch's meta device: it has only shapes, and takes no memory. If timm or torch need
values, it is the network itself on a CPU.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from models.attention import AttentionRequest, pass_with_attention
from models.backbones.timm_base import attention_modules
from models.scores import all_scores_of


@dataclass(frozen=True)
class Outline:
    """The outputs of a network, for all its layers, shallow to deep.

    Attributes:
        width: D of its pooled features.
        channels: C of each map.
        strides: image pixels per cell of each map.
        normed: whether it can apply its final norm to maps.
        attends: whether every block attends once, between all of its tokens.
    """

    width: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    normed: bool
    attends: bool


def sketch_of(model: str, device: str, **options: Any) -> Any:
    """Returns timm's network of this name on a device, without classifier, in eval mode."""
    with torch.device(device):
        return timm.create_model(model, num_classes=0, **options).eval()


@torch.no_grad()
def outline_of(sketch: Any, side: int) -> Outline:
    """Runs a sketch on an image.

    Args:
        sketch: see `sketch_of`.
        side: of the image, in pixels.

    Raises:
        ValueError: it gives no intermediate features. Errors of timm pass through.
    """
    if not hasattr(sketch, "forward_intermediates"):
        raise ValueError("it gives no intermediate features (forward_intermediates)")
    device = next(sketch.parameters()).device
    images = torch.zeros(1, 3, side, side, device=device)
    normed = True
    try:
        last, maps = sketch.forward_intermediates(images, norm=True)
    except AssertionError:  # Hiera's norm works on its pooled features only
        normed = False
        last, maps = sketch.forward_intermediates(images)
    pooled = sketch.forward_head(last, pre_logits=True)
    return Outline(
        width=pooled.flatten(1).shape[1],
        channels=tuple(each.shape[1] for each in maps),
        strides=tuple(
            _stride(side, each.shape[2], int(info["reduction"]))
            for each, info in zip(maps, sketch.feature_info, strict=True)
        ),
        normed=normed,
        attends=_attends_globally(sketch, images, maps[-1].shape[2] * maps[-1].shape[3]),
    )


def _stride(side: int, cells: int, declared: int) -> int:
    # timm's value stays if only the border differs (unpadded convolutions; 4 cells of 64 in 224).
    fits = 2 / 3 < side / (cells * declared) < 3 / 2
    return declared if fits else round(side / cells)


def _attends_globally(sketch: Any, images: Tensor, patches: int) -> bool:
    """Whether it is a ViT in which every block attends once, between all of its tokens."""
    passes = inspect.signature(sketch.forward_intermediates).parameters
    if not {"return_prefix_tokens", "output_fmt"} <= passes.keys():
        return False
    modules = attention_modules(sketch)
    if not all(hasattr(module, "num_heads") for module in modules):
        return False
    tokens = sketch.num_prefix_tokens + patches

    def attends(block: int, module: nn.Module, *inputs: Any, **named: Any) -> bool:
        calls = all_scores_of(module, *inputs, **named)
        sizes = [side for call in calls for side in (call.q.shape[-2], call.k.shape[-2])]
        return sizes == [tokens, tokens]

    request = AttentionRequest(tuple(range(len(modules))))
    _, answers = pass_with_attention(lambda: sketch(images), modules, request, attends)
    return all(answers)
