"""A teacher: the exponential moving average of a student's weights."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

from timm.layers import DropPath
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

Network = TypeVar("Network", bound=nn.Module)


def teacher_of(student: Network) -> Network:
    """Returns an equal copy without gradients and dropout."""
    teacher = deepcopy(student).requires_grad_(False)
    for module in teacher.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    return teacher


def update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """θ_t ← m θ_t + (1 - m) θ_s, parameters only.

    The teacher keeps its own BatchNorm statistics: it runs in training mode (official code).
    """
    get_ema_multi_avg_fn(momentum)(
        [p.detach() for p in teacher.parameters()], [p.detach() for p in student.parameters()], 0
    )
