"""Exact large batches in small memory.

The backbone sees a few images at a time and frees its activations; only the pooled features of the
whole batch are kept. Projector and loss then work on the whole batch, and the backward pass runs
the backbone again, chunk by chunk. The cut is at the *features*, because a projector with BatchNorm
has to see the whole batch (gradient caching, Gao et al. 2021, arXiv 2101.06983, cuts at the
embeddings instead). The resulting gradient is

* for a LayerNorm backbone without dropout: that of the whole batch, up to rounding.
* with dropout or drop path: that of the plain chunk loop, since random states are restored.
* for a BatchNorm backbone: that of chunk-wise BatchNorm; running statistics are updated once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from utils.device import moved
from utils.memory import return_freed_memory

# Not after every chunk, because getting returned memory back costs page faults.
_CHUNKS_PER_TRIM = 4


@contextmanager
def _batch_norm_statistics_kept(module: nn.Module) -> Iterator[None]:
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    saved = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, momentum, batches in saved:
            norm.momentum = momentum
            norm.num_batches_tracked = batches


def forward_in_chunks(
    module: nn.Module,
    forward: Callable[[Tensor], Tensor],
    chunks: Sequence[Tensor],
    device: torch.device,
) -> Tensor:
    """Applies `forward` to each chunk and concatenates; activations are recomputed in backward.

    Args:
        module: the network behind `forward`, whose BatchNorm statistics are updated once.
        forward: `(n, 3, H, W)` to `(n, D)`.
        chunks: the images; they may be on the host, and are moved when needed.
        device: where `module` lives.

    Returns:
        `(N, D)` with the gradient of the chunk loop.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _batch_norm_statistics_kept(module)

    def run(index: int, images: Tensor, _: Tensor) -> Tensor:
        if device.type == "cpu" and (index + 1) % _CHUNKS_PER_TRIM == 0:
            return_freed_memory()
        return forward(moved(images, device))

    # checkpoint() saves the random state of its arguments' devices: with images on the host, only
    # this empty tensor makes it restore the GPU's dropout masks.
    anchor = torch.empty(0, device=device)
    outputs = [
        checkpoint(run, index, images, anchor, use_reentrant=False, context_fn=contexts)
        for index, images in enumerate(chunks)
    ]
    return torch.cat(outputs)
