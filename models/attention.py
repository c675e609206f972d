"""Requests for a network's attention, and the answers: softmax rows, or queries and keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layer_numbers import resolve_indices
from models.precision import at_least_float32, unrounded_factors

Queries = Literal["cls", "mean", "all"]
Pair = Literal["qk", "qq", "kk"]
Result = TypeVar("Result")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class AttentionRequest:
    """Asks a forward pass for attention.

    Attributes:
        blocks: which blocks, negative from the end.
        queries: `cls`: the row of the first prefix token | `mean`: the rows of all patches,
            averaged, i.e. the attention a token receives | `all`: every row | `factors`: queries
            and keys, from which all of these follow (`AttentionFactors`).
        num_images: only for the first n images of the batch; None: all. It costs one unfused
            attention for these images.
    """

    blocks: tuple[int, ...] = (-1,)
    queries: Queries | Literal["factors"] = "cls"
    num_images: int | None = None

    def resolve(self, depth: int, option: str = "") -> tuple[int, ...]:
        """Returns the blocks counted from the front.

        Args:
            depth: number of blocks in the network.
            option: the option that asks for them, for the message.

        Raises:
            ValueError: there is no such block.
        """
        return resolve_indices(self.blocks, depth, "block", option)


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
        num_position: how many of the d dimensions, the last ones, encode relative positions and not
            content.
        has_cls: whether the first prefix token is CLS; else all are registers.
    """

    block: int
    q: Tensor
    k: Tensor
    grid: tuple[int, int]
    num_prefix: int
    num_position: int = 0
    has_cls: bool = False

    def rows(self, queries: Queries) -> Attention:
        """Returns the attention of the requested queries; see `attention_rows`.

        Raises:
            ValueError: `cls` is requested, but there is no CLS token.
        """
        if queries == "cls" and not self.has_cls:
            raise ValueError("This backbone has no CLS token; ask for queries 'mean' or 'all'.")
        weights = attention_rows(self.q, self.k, self.num_prefix, queries)
        return Attention(self.block, weights, self.grid, self.num_prefix)

    def patch_attention(self, head: int, pair: Pair = "qk") -> Tensor:
        """Returns one head's attention between patches, `(B, h*w, h*w)`.

        Args:
            head: index of the head.
            pair: what is compared. `qk`: queries with keys, as in the network; rows sum to at most
                1, the rest goes to prefix tokens. `qq`, `kk`: the patches' queries, or keys, with
                each other, by content and not by position, divided by the root of their width; rows
                sum to 1.
        """
        content = self.q.shape[-1] - self.num_position
        with unrounded_factors(self.q.device):
            q, k = at_least_float32(self.q[:, head], self.k[:, head])
            if pair == "qk":
                rows = (q[:, self.num_prefix :] @ k.transpose(-2, -1)).softmax(-1)
                return rows[..., self.num_prefix :]
            patches = (q if pair == "qq" else k)[:, self.num_prefix :, :content]
            scale = content**0.5 if pair == "qq" else content**-0.5
            return (patches @ patches.transpose(-2, -1) * scale).softmax(-1)

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


@torch.compiler.disable  # type: ignore[untyped-decorator]
def pass_with_attention(
    run: Callable[[], Result],
    modules: Sequence[nn.Module],
    request: AttentionRequest,
    answer: Callable[..., Answer],
) -> tuple[Result, tuple[Answer, ...]]:
    """Runs a forward pass and computes the requested attention from the inputs of its modules.

    The requested modules have forward pre-hooks during the pass, which are removed even after an
    error. The modules compute as usual (fused), so a request changes nothing else. The answers are
    part of the graph; recomputing the pass (checkpointing) computes them again. `torch.compile`
    leaves this function out, because it does not guard hooks: it would reuse a graph traced without
    them, and the request would stay unanswered.

    Args:
        run: the forward pass.
        modules: the attention module of every block, shallow to deep.
        request: which blocks and queries.
        answer: called with block, module and the module's own inputs before it computes.

    Returns:
        What `run` returns, and one answer per requested block, shallow to deep.

    Raises:
        ValueError: there is no such block.
    """
    answers: dict[int, Answer] = {}

    def hook(block: int) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            answers[block] = answer(block, module, *inputs, **named)

        return keep

    blocks = request.resolve(len(modules))
    with ExitStack() as hooks:
        for block in blocks:
            handle = modules[block].register_forward_pre_hook(hook(block), with_kwargs=True)
            hooks.enter_context(handle)
        result = run()
    return result, tuple(answers[block] for block in blocks)


def mass_mask(maps: Tensor, mass: float) -> Tensor:
    """Marks the fewest patches that hold at least the share `mass` of a map.

    Args:
        maps: `(..., h, w)`, not negative.
        mass: 0 … 1, relative to the map's own sum.

    Returns:
        `(..., h, w)` bool.
    """
    flat = maps.flatten(-2)
    ordered, order = (flat / flat.sum(-1, keepdim=True)).sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    keep = torch.zeros_like(flat, dtype=torch.bool).scatter(-1, order, before < mass)
    return keep.unflatten(-1, maps.shape[-2:])


def attention_rows(q: Tensor, k: Tensor, num_prefix: int, queries: Queries) -> Tensor:
    """Returns softmax(q kᵀ) for the requested queries, in float32 or better.

    Args:
        q: `(B, heads, N, d)`, times the scale of the logits.
        k: `(B, heads, N, d)`.
        num_prefix: tokens before the patches.
        queries: which rows, see `AttentionRequest`; `cls` is the first one.

    Returns:
        `(B, heads, Q, N)`.
    """
    if queries == "cls":
        q = q[:, :, :1]
    elif queries == "mean":
        q = q[:, :, num_prefix:]
    with unrounded_factors(q.device):
        q, k = at_least_float32(q, k)
        rows = (q @ k.transpose(-2, -1)).softmax(-1)
    return rows.mean(2, keepdim=True) if queries == "mean" else rows
