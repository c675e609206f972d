"""Optimizers, with weight decay for matrices except biases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from timm.optim import Lars
from torch import Tensor, nn
from torch.optim import Optimizer

# Official Barlow Twins: learning rate 0.0048 for biases and norms, 0.2 for matrices. LARS does not
# adapt the steps of biases and norms to the size of the weights: 0.2 would be far too large.
LARS_UNADAPTED_LR = 0.0048 / 0.2


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices, not to norms and biases.

    Learnt positions and tokens (`pos_embed`, `cls_token`, BoTNet's `rel_height`) count as matrices,
    as in the official code of DINO and Barlow Twins. Swin's `relative_position_bias_table` counts
    as a bias; Swin does not decay it either.
    """
    return parameter.ndim > 1 and "bias" not in name.rpartition(".")[2]


def parameter_groups(
    modules: Mapping[nn.Module, float], lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Splits trainable parameters: matrices decay, norms and biases do not.

    Args:
        modules: each with the factor on `lr` for its parameters; shared parameters belong to the
            first module.
        lr: learning rate.
        weight_decay: of the matrices.

    Returns:
        At most two groups per module, matrices first, and whether each `decays`; frozen parameters
        are left out.

    Raises:
        ValueError: nothing is trainable.
    """
    # Shared parameters have a name in each module, and perhaps only one of them says bias.
    undecayed = {
        parameter
        for module in modules
        for name, parameter in module.named_parameters()
        if not decays(name, parameter)
    }
    groups: list[dict[str, Any]] = []
    taken: set[nn.Parameter] = set()
    for module, factor in modules.items():
        trained = [p for p in module.parameters() if p.requires_grad and p not in taken]
        taken.update(trained)
        for decay in (True, False):
            if members := [p for p in trained if (p not in undecayed) is decay]:
                own = {"weight_decay": weight_decay if decay else 0.0, "decays": decay}
                groups.append({"params": members, "lr": factor * lr, **own})
    if not groups:
        raise ValueError("There is nothing to train: every parameter is frozen.")
    return groups


def adamw(groups: list[dict[str, Any]]) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019), fused on CUDA.

    `fused` is set in the groups, not for the optimizer: a fused optimizer unscales gradients itself
    (16-mixed), so that clipping and readouts before the step would see scaled gradients.
    """
    fused = all(p.is_cuda for group in groups for p in group["params"])
    return torch.optim.AdamW([{**group, "fused": fused} for group in groups])


def lars(groups: list[dict[str, Any]], momentum: float = 0.9) -> Optimizer:
    """LARS (You et al. 2017) as in Barlow Twins: norms and biases neither decay nor adapt.

    Matrices adapt even without weight decay; in timm only parameters with weight decay do.
    """
    rated = []
    for group in groups:
        adapts = group["decays"]
        lr = group["lr"] * (1 if adapts else LARS_UNADAPTED_LR)
        rated.append({**group, "lr": lr, "always_adapt": adapts})
    return Lars(rated, momentum=momentum)


def sgd(groups: list[dict[str, Any]], momentum: float = 0.9) -> Optimizer:
    """SGD with momentum."""
    return torch.optim.SGD(groups, momentum=momentum)


def clip_each(parameters: Iterable[Tensor], limit: float) -> None:
    """Clips the norm of every single gradient to `limit` (DINO's official code).

    Like `clip_grad_norm_` for one tensor after the other, but for all of them at once.

    Args:
        parameters: on one device.
        limit: of each norm.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return
    norms = torch.stack(torch._foreach_norm(gradients))
    factors = (limit / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, factors.unbind())
