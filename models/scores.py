"""Gets queries, keys and bias from any attention module: its arguments to torch's fused attention.

These include norms, rotary positions, shared keys and relative positions as the module computed
them, whatever its library, so that nothing has to be implemented a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.precision import at_least_float32

_FUSED = F.scaled_dot_product_attention


@dataclass(frozen=True)
class Scores:
    """Attention before the softmax: softmax(q kᵀ + bias).

    Attributes:
        q: `(B, heads, N, d)`, times the scale of the logits.
        k: `(B, heads, N, d)`.
        bias: of relative positions and masks, broadcasts to `(B, heads, N, N)`; None without.
    """

    q: Tensor
    k: Tensor
    bias: Tensor | None

    def rows(self) -> Tensor:
        """Returns softmax(q kᵀ + bias), `(B, heads, N, N)`, in float32 or better."""
        with torch.autocast(self.q.device.type, enabled=False):
            q, k = at_least_float32(self.q, self.k)
            logits = q @ k.transpose(-2, -1)
            return (logits if self.bias is None else logits + self.bias).softmax(-1)

    def extended(self) -> tuple[Tensor, Tensor, int]:
        """Returns queries and keys whose product includes the bias, `(B, heads, N, d + n)`, and n.

        Every key gets a dimension of its own, in which queries have their bias for it.
        """
        if self.bias is None:
            return self.q, self.k, 0
        batch, heads, count, _ = self.k.shape
        own = torch.eye(count, dtype=self.k.dtype, device=self.k.device)
        bias = self.bias.expand(batch, heads, -1, -1)
        return torch.cat([self.q, bias], -1), torch.cat([self.k, own.expand_as(bias)], -1), count


class _Reached(Exception):
    """The module has reached its attention: its arguments are known."""


class _Watch(TorchFunctionMode):
    """Records the arguments of calls of fused attention.

    Args:
        stop: raise `_Reached` instead of computing attention.
    """

    def __init__(self, stop: bool) -> None:
        super().__init__()
        self.stop = stop
        self.calls: list[Scores] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is _FUSED:
            self.calls.append(_scores(*args, **(kwargs or {})))
            if self.stop:
                raise _Reached
        return func(*args, **(kwargs or {}))


def _scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **more: Any,
) -> Scores:
    """Reads a call of `scaled_dot_product_attention`."""
    if is_causal or (attn_mask is not None and attn_mask.dtype == torch.bool):
        raise ValueError("Attention in which some tokens are hidden from others is not shown.")
    return Scores(query * (query.shape[-1] ** -0.5 if scale is None else scale), key, attn_mask)


def scores_of(module: nn.Module, *inputs: Any, **named: Any) -> Scores:
    """Runs an attention module up to its attention.

    Args:
        module: computes attention once by `scaled_dot_product_attention`, perhaps only while its
            attribute `fused_attn` is true, as in timm.
        inputs: positional arguments of the module.
        named: keyword arguments of the module.

    Raises:
        ValueError: it does not, or it masks tokens.
    """
    with _fused(module), _Watch(stop=True) as watch, suppress(_Reached):
        module.forward(*inputs, **named)
    if not watch.calls:
        raise ValueError(f"{type(module).__name__} has no softmax(q kᵀ) that could be shown.")
    return watch.calls[0]


def all_scores_of(module: nn.Module, *inputs: Any, **named: Any) -> list[Scores]:
    """Runs a module to its end and returns every attention in it; see `scores_of`."""
    with _fused(module), _Watch(stop=False) as watch:
        module.forward(*inputs, **named)
    return watch.calls


@contextmanager
def _fused(module: Any) -> Iterator[None]:
    before = getattr(module, "fused_attn", None)
    if before is None:
        yield
        return
    module.fused_attn = True
    try:
        yield
    finally:
        module.fused_attn = before
