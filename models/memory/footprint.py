"""What a pass costs: memory kept for the backward pass, and arithmetic, without training."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.backbones.base import Backbone

_FEW, _MORE = 2, 4  # images; BatchNorm is not defined on one


def bytes_per_image(backbone: Backbone, side: int, mixed: bool) -> float:
    """Returns the bytes that a training pass saves for the gradient, for each further image.

    A copy of the backbone sees two images and then four, on the CPU; what autograd keeps of both
    passes is counted. Their difference leaves out what does not grow with the batch, such as the
    copies of the weights in half precision.

    Args:
        backbone: stays as it is.
        side: of the images in pixels.
        mixed: whether it trains in half precision.
    """
    if backbone.frozen:
        return 0.0
    network = copy.deepcopy(backbone).cpu().train()
    if not any(parameter.requires_grad for parameter in network.parameters()):
        network.requires_grad_(True)  # a teacher stands for the student it is the average of
    return (_saved(network, _MORE, side, mixed) - _saved(network, _FEW, side, mixed)) / (
        _MORE - _FEW
    )


class Flops(NamedTuple):
    """Operations of one image, a multiplication and an addition as two.

    Attributes:
        forth: of its pass.
        back: of the way back, two for each one forth, through what learns.
    """

    forth: int
    back: int


def flops(backbone: Backbone, side: int) -> Flops:
    """Counts the operations of matrices and convolutions, which are nearly all, on the CPU.

    Args:
        backbone: stays as it is.
        side: of the image in pixels.
    """
    # Not within `no_grad`: the counter asks modules that learn for a gradient.
    network = copy.deepcopy(backbone).cpu().eval().requires_grad_(False)
    image = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    # Attention as products of matrices: older versions do not count the fused kernel of the CPU.
    plainly = sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, plainly:
        network(image)
    counts = counter.get_flop_counts()
    top = type(network).__name__
    names = {module: f"{top}.{name}" for name, module in network.named_modules()}

    def within(module: nn.Module) -> int:
        if kinds := counts.get(names.get(module, "")):
            return sum(kinds.values())
        # A list of modules is not called itself.
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
        # Held until all is counted: a place that is freed would be used, and counted, again.
        held = network(images)
    total = sum(kept.values())
    del held
    return total
