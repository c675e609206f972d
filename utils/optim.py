"""Optimizers, with weight decay on matrices only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from timm.optim import Lars
from torch import nn
from torch.optim import Optimizer

# Official Barlow Twins: learning rate 0.0048 for biases and norms beside 0.2 for matrices. LARS
# does not adapt their step to the size of the weights: the same rate would be far too large.
LARS_UNADAPTED_LR = 0.0048 / 0.2


def parameter_groups(modules: Iterable[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Splits trainable parameters: matrices decay, norms and biases do not.

    Returns:
        Two groups, the decayed one first; frozen parameters are left out.

    Raises:
        ValueError: nothing is trainable.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("There is nothing to train: every parameter is frozen.")
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def adamw(groups: list[dict[str, Any]], lr: float) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019), fused on CUDA."""
    fused = all(p.is_cuda for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, lr=lr, fused=fused)


def lars(groups: list[dict[str, Any]], lr: float, momentum: float = 0.9) -> Optimizer:
    """LARS (You et al. 2017) as in Barlow Twins: norms and biases neither decay nor adapt."""
    matrices, others = groups
    return Lars(
        [matrices | {"lr": lr}, others | {"lr": lr * LARS_UNADAPTED_LR}], lr=lr, momentum=momentum
    )


def sgd(groups: list[dict[str, Any]], lr: float, momentum: float = 0.9) -> Optimizer:
    """SGD with momentum."""
    return torch.optim.SGD(groups, lr=lr, momentum=momentum)
