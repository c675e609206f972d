"""Helpers to compute losses and attention logits in float32 or better, even under autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Returns half-precision tensors as float32, others as they are."""
    half = (torch.float16, torch.bfloat16)
    return tuple(tensor.float() if tensor.dtype in half else tensor for tensor in tensors)


@contextmanager
def unrounded_factors(device: torch.device) -> Iterator[None]:
    """Multiplies float32 matrices in full precision, without autocast and TF32.

    Half-precision runs round factors to 7 or 10 bits (`utils.device.use_tensor_cores`). Losses and
    statistics tolerate that. Products to be ranked do not, because many become equal. Nor do large
    attention logits that differ by little.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
