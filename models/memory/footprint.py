"""Measures the cost of a pass without training: memory for the backward pass, and FLOPs."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.backbones.base import Backbone

_FEW, _MORE = 2, 4  # images; BatchNorm needs more than one


def bytes_per_image(backbone: Backbone, side: int, mixed: bool) -> float:
    """Returns the bytes that autograd saves for each additional image in a training pass.

    A copy of the backbone sees two images and then four, on the CPU. The difference of what
    autograd saves excludes everything that does not grow with the batch, such as half-precision
    copies of the weights.

    Args:
        backbone: not changed.
        side: of the images in pixels.
        mixed: whether it trains in half precision.
    """
    if backbone.frozen:
        return 0.0
    network = copy.deepcopy(backbone).cpu().train()
    if not any(parameter.requires_grad for parameter in network.parameters()):
        network.requires_grad_(True)  # a teacher: measured like its student
    return (_saved(network, _MORE, side, mixed) - _saved(network, _FEW, side, mixed)) / (
        _MORE - _FEW
    )


class Flops(NamedTuple):
    """Operations for one image; a multiplication and an addition count as two.

    Attributes:
        forth: of the forward pass.
        back: of the backward pass: twice the forward operations of the trained parts.
    """

    forth: int
    back: int


def flops(backbone: Backbone, side: int) -> Flops:
    """Counts the operations of matrices and convolutions, which are nearly all, on the CPU.

    Args:
        backbone: not changed.
        side: of the image in pixels.
    """
    # Not under `no_grad`, where the counter fails for modules that require gradients.
    network = copy.deepcopy(backbone).cpu().eval().requires_grad_(False)
    image = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    # Unfused attention, because older versions do not count the CPU's fused kernel.
    plainly = sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, plainly:
        network(image)
    counts = counter.get_flop_counts()
    top = type(network).__name__
    names = {module: f"{top}.{name}" for name, module in network.named_modules()}

    def within(module: nn.Module) -> int:
        if kinds := counts.get(names.get(module, "")):
            return sum(kinds.values())
        # A ModuleList is not called itself, only its modules.
        return sum(map(within, module.children()))

    forth = int(counter.get_total_flops())
    if network.trained_stages:
        return Flops(forth, 2 * sum(map(within, network.trained_stages)))
    return Flops(forth, 0 if backbone.frozen else 2 * forth)


def _saved(network: nn.Module, count: int, side: int, mixed: bool) -> int:
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = torch.zeros(count, 3, side, side, dtype=torch.uint8)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        # Kept alive until all is counted: freed addresses would be reused and overwrite the count.
        held = network(images)
    total = sum(kept.values())
    del held
    return total
