"""A loss that is a sum of pieces, with the activations of only one piece in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class _Precomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor | None], *_: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if g is None else g * outer[0] for g in ctx.gradients)


def sum_in_pieces(
    pieces: Iterable[Callable[[], Tensor]], parameters: Sequence[Tensor], scale: float = 1.0
) -> Tensor:
    """Returns Σ piece(), differentiated piece by piece.

    Every piece is computed, differentiated and freed before the next one; the backward pass of the
    result returns the summed gradients. Exact, without a second forward pass, for losses that are
    sums over samples (DINO's views, https://github.com/facebookresearch/dino/issues/269).

    Args:
        pieces: compute scalar losses.
        parameters: the tensors to differentiate for.
        scale: factor on the pieces while they are differentiated (that of the gradient scaler), so
            that float16 gradients do not vanish.

    Raises:
        ValueError: there is no piece.
    """
    total: Tensor | None = None
    gradients: list[Tensor | None] = [None] * len(parameters)
    for piece in pieces:
        loss = piece()
        # Backward passes must not run under autocast.
        with torch.autocast(loss.device.type, enabled=False):
            found = torch.autograd.grad(scale * loss, parameters, allow_unused=True)
        for index, gradient in enumerate(found):
            if gradient is not None:
                sofar = gradients[index]
                # Not in place: autograd may return the same tensor for two parameters.
                gradients[index] = gradient if sofar is None else sofar + gradient
        total = loss.detach() if total is None else total + loss.detach()
    if total is None:
        raise ValueError("A sum of no pieces has no gradient.")
    if scale != 1:
        gradients = [None if g is None else g / scale for g in gradients]
    result: Tensor = _Precomputed.apply(total, gradients, *parameters)
    return result
