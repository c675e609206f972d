"""How a batch is split into chunks, in the loaders and in the computation."""

from __future__ import annotations


def chunk_sizes(batch_size: int, chunk_size: int | None) -> list[int]:
    """Splits a batch into even chunks of at most `chunk_size` images.

    No chunk has a single image, for which BatchNorm is undefined: an odd batch in chunks of two has
    one chunk of three.

    Raises:
        ValueError: a size is below 2.
    """
    if batch_size < 2 or (chunk_size is not None and chunk_size < 2):
        raise ValueError(
            f"batch_size {batch_size}, chunk_size {chunk_size}: both must be at least 2."
        )
    count = 1 if chunk_size is None else -(-batch_size // chunk_size)
    count = min(count, batch_size // 2)
    small, larger = divmod(batch_size, count)
    return [small + 1] * larger + [small] * (count - larger)
