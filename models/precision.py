"""Losses and attention logits are computed in float32 or better, whatever autocast gives."""

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
    """Multiplies float32 matrices as they are, without autocast and without TF32.

    Factors of a half-precision run are rounded, to 7 or 10 bits, which losses and statistics bear
    (`utils.device.use_tensor_cores`). Products that are ranked do not: many become equal. Nor do
    logits of attention where all are large and what counts is by how little they differ.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
