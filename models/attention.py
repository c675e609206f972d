"""The attention request a backbone answers, and its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.precision import at_least_float32


@dataclass(frozen=True)
class AttentionRequest:
    """Asks a forward pass for attention.

    Attributes:
        blocks: which blocks, negative from the end.
        queries: `cls`: the row of the first prefix token | `mean`: the rows of all patches,
            averaged, i.e. the attention a token receives | `all`: every row.
        num_images: the first n images of the batch only; None: all. The cost is that of one unfused
            attention for these images.
    """

    blocks: tuple[int, ...] = (-1,)
    queries: Literal["cls", "mean", "all"] = "cls"
    num_images: int | None = None

    def resolve(self, depth: int) -> tuple[int, ...]:
        """Returns the blocks counted from the front.

        Raises:
            ValueError: a block outside the network.
        """
        return resolve_indices(self.blocks, depth, "block")


@dataclass(frozen=True)
class Attention:
    """Attention of one block.

    Attributes:
        block: index from the front.
        weights: `(B, heads, Q, P + h*w)` softmax rows, prefix tokens first; Q is 1 for `cls`,
            `mean`.
        grid: `(h, w)` of the patches.
        num_prefix: P, the tokens before the patches (CLS, registers).
    """

    block: int
    weights: Tensor
    grid: tuple[int, int]
    num_prefix: int

    def patch_maps(self) -> Tensor:
        """Returns the attention over patches, `(B, heads, Q, h, w)`; rows sum to at most 1."""
        return self.weights[..., self.num_prefix :].unflatten(-1, self.grid)


def attention_rows(
    q: Tensor, k: Tensor, scale: float, num_prefix: int, queries: Literal["cls", "mean", "all"]
) -> Tensor:
    """Returns softmax(q kᵀ scale) for the asked queries, in float32 or better.

    Args:
        q: `(B, heads, N, d)`.
        k: `(B, heads, N, d)`.
        scale: factor on the logits.
        num_prefix: tokens before the patches.
        queries: which rows, see `AttentionRequest`.

    Returns:
        `(B, heads, Q, N)`.

    Raises:
        ValueError: `cls` is asked of a network without a prefix token.
    """
    if queries == "cls" and num_prefix == 0:
        raise ValueError("This backbone has no CLS token; ask for queries 'mean' or 'all'.")
    if queries == "cls":
        q = q[:, :, :1]
    elif queries == "mean":
        q = q[:, :, num_prefix:]
    with torch.autocast(q.device.type, enabled=False):
        q, k = at_least_float32(q, k)
        rows = (q @ k.transpose(-2, -1) * scale).softmax(-1)
    return rows.mean(2, keepdim=True) if queries == "mean" else rows


def resolve_indices(indices: tuple[int, ...], count: int, what: str) -> tuple[int, ...]:
    """Turns negative indices into positive ones and sorts them.

    Raises:
        ValueError: an index outside `count`.
    """
    resolved = sorted({index + count if index < 0 else index for index in indices})
    if not resolved or resolved[0] < 0 or resolved[-1] >= count:
        raise ValueError(
            f"{what} {list(indices)} of a network with {count} {what}s: use 0 … {count - 1}, "
            "or negative numbers from the end."
        )
    return tuple(resolved)
