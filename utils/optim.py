"""Optimizers, with weight decay on matrices that are no biases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from timm.optim import Lars
from torch import Tensor, nn
from torch.optim import Optimizer

# Official Barlow Twins: learning rate 0.0048 for biases and norms beside 0.2 for matrices. LARS
# does not adapt their step to the size of the weights: the same rate would be far too large.
LARS_UNADAPTED_LR = 0.0048 / 0.2


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices, not to norms and biases.

    What is learnt for a position or a token (`pos_embed`, `cls_token`, BoTNet's `rel_height`) is a
    matrix among others, as in the official code of DINO and Barlow Twins. Biases may be tables:
    Swin's `relative_position_bias_table`, which Swin does not decay either.
    """
    return parameter.ndim > 1 and "bias" not in name.rpartition(".")[2]


def parameter_groups(
    modules: Mapping[nn.Module, float], lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Splits trainable parameters: matrices decay, norms and biases do not.

    Args:
        modules: each with the factor on `lr` for its parameters; what several have in common is the
            first one's.
        lr: learning rate.
        weight_decay: of the matrices.

    Returns:
        At most two groups a module, matrices first, and whether each `decays`; frozen parameters
        are left out.

    Raises:
        ValueError: nothing is trainable.
    """
    # What several modules have in common has a name in each; only one of them may tell a bias.
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

    The kernel is chosen for the groups, not for the optimizer: one that is fused as a whole takes a
    gradient scaler's division upon itself, so that under 16-mixed whatever clips or measures the
    gradients before the step would see them still multiplied.
    """
    fused = all(p.is_cuda for group in groups for p in group["params"])
    return torch.optim.AdamW([{**group, "fused": fused} for group in groups])


def lars(groups: list[dict[str, Any]], momentum: float = 0.9) -> Optimizer:
    """LARS (You et al. 2017) as in Barlow Twins: norms and biases neither decay nor adapt.

    Matrices adapt whether they decay or not; timm's own rule is that only what decays does.
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
    """Scales every gradient whose own norm exceeds `limit` down to it (DINO's official code).

    As `clip_grad_norm_` of one tensor after the other, for all of them together.

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
