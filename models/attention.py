"""The attention request a backbone answers, and its answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.precision import at_least_float32

Queries = Literal["cls", "mean", "all"]


@dataclass(frozen=True)
class AttentionRequest:
    """Asks a forward pass for attention.

    Attributes:
        blocks: which blocks, negative from the end.
        queries: `cls`: the row of the first prefix token | `mean`: the rows of all patches,
            averaged, i.e. the attention a token receives | `all`: every row | `factors`: queries
            and keys, from which all of these follow (`AttentionFactors`).
        num_images: the first n images of the batch only; None: all. The cost is that of one unfused
            attention for these images.
    """

    blocks: tuple[int, ...] = (-1,)
    queries: Queries | Literal["factors"] = "cls"
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


@dataclass(frozen=True)
class AttentionFactors:
    """Queries and keys of one block of global attention: N x d numbers instead of N x N.

    Attributes:
        block: index from the front.
        q: `(B, heads, P + h*w, d)`, times the scale of the logits.
        k: the same of the keys; attention is softmax(q kᵀ).
        grid: `(h, w)` of the patches.
        num_prefix: P, the tokens before the patches.
        num_position: the last of the d dimensions that carry relative positions, not content.
    """

    block: int
    q: Tensor
    k: Tensor
    grid: tuple[int, int]
    num_prefix: int
    num_position: int = 0

    def rows(self, queries: Queries) -> Attention:
        """Returns the attention of the asked queries; see `attention_rows`."""
        weights = attention_rows(self.q, self.k, self.num_prefix, queries)
        return Attention(self.block, weights, self.grid, self.num_prefix)

    def patch_attention(self, head: int) -> Tensor:
        """Returns one head's attention between patches, `(B, h*w, h*w)`; rows sum to at most 1."""
        every = self.q[:, head, self.num_prefix :], self.k[:, head]
        with torch.autocast(self.q.device.type, enabled=False):
            q, k = at_least_float32(*every)
            return (q @ k.transpose(-2, -1)).softmax(-1)[..., self.num_prefix :]

    def patch_keys(self) -> Tensor:
        """Returns the keys of the patches, all heads together, `(B, h*w, heads * d)`."""
        content = self.k[:, :, self.num_prefix :, : self.k.shape[-1] - self.num_position]
        return at_least_float32(content.transpose(1, 2).flatten(2))[0]

    def resized(self, grid: tuple[int, int]) -> AttentionFactors:
        """Returns queries and keys interpolated bilinearly to another grid."""
        if grid == self.grid:
            return self
        q, k = (self._resized(tokens, grid) for tokens in (self.q, self.k))
        return replace(self, q=q, k=k, grid=grid)

    def _resized(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        batch, heads, _, width = tokens.shape
        patches = tokens[:, :, self.num_prefix :].transpose(2, 3)
        laid = patches.reshape(batch, heads * width, *self.grid)
        laid = F.interpolate(laid, size=grid, mode="bilinear", align_corners=False)
        patches = laid.reshape(batch, heads, width, -1).transpose(2, 3)
        return torch.cat([tokens[:, :, : self.num_prefix], patches], 2)


def mass_mask(maps: Tensor, mass: float) -> Tensor:
    """Marks the fewest patches that hold at least `mass` of a map.

    Args:
        maps: `(..., h, w)`, not negative.
        mass: in 0 … 1, of the map's own sum.

    Returns:
        `(..., h, w)` bool.
    """
    flat = maps.flatten(-2)
    ordered, order = (flat / flat.sum(-1, keepdim=True)).sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    keep = torch.zeros_like(flat, dtype=torch.bool).scatter(-1, order, before < mass)
    return keep.unflatten(-1, maps.shape[-2:])


def attention_rows(q: Tensor, k: Tensor, num_prefix: int, queries: Queries) -> Tensor:
    """Returns softmax(q kᵀ) for the asked queries, in float32 or better.

    Args:
        q: `(B, heads, N, d)`, times the scale of the logits.
        k: `(B, heads, N, d)`.
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
        rows = (q @ k.transpose(-2, -1)).softmax(-1)
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
