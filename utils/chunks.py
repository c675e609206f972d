"""How a batch is split into chunks: by the loaders, and by what computes on them."""

from __future__ import annotations


def chunk_sizes(batch_size: int, chunk_size: int | None) -> list[int]:
    """Splits a batch into even chunks of at most `chunk_size` images.

    No chunk has a single image, on which BatchNorm is undefined: for an odd batch in chunks of two
    one chunk has three.

    Raises:
        ValueError: sizes below 2.
    """
    if batch_size < 2 or (chunk_size is not None and chunk_size < 2):
        raise ValueError(
            f"batch_size {batch_size}, chunk_size {chunk_size}: both must be at least 2."
        )
    count = 1 if chunk_size is None else -(-batch_size // chunk_size)
    count = min(count, batch_size // 2)
    small, larger = divmod(batch_size, count)
    return [small + 1] * larger + [small] * (count - larger)
