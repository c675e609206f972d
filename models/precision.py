"""Losses and attention logits are computed in float32 or better, whatever autocast gives."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Returns half-precision tensors as float32, others as they are."""
    half = (torch.float16, torch.bfloat16)
    return tuple(tensor.float() if tensor.dtype in half else tensor for tensor in tensors)
