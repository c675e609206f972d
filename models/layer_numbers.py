"""Resolves indices of layers or blocks: from 0, negative ones from the end."""

from __future__ import annotations


def parse_layers(layers: str, count: int) -> tuple[int, ...]:
    """Turns `last`, `last4` or `2,5,8,11` into indices, shallow to deep.

    Raises:
        ValueError: the format is wrong, or there is no such layer.
    """
    number = layers.removeprefix("last")
    try:
        if layers.startswith("last"):
            indices = tuple(range(-int(number or 1), 0))
        else:
            indices = tuple(int(part) for part in layers.split(","))
    except ValueError as error:
        raise ValueError(
            f"--backbone.layers {layers}: use last, last4, or numbers such as 2,5,8,11."
        ) from error
    return resolve_indices(indices, count, "layer", f"--backbone.layers {layers}")


def resolve_indices(
    indices: tuple[int, ...], count: int, what: str, option: str = ""
) -> tuple[int, ...]:
    """Turns negative indices into positive ones and sorts them.

    Args:
        indices: of layers or blocks.
        count: number of layers or blocks in the network.
        what: the name of one of them in the message.
        option: the option that asks for them, for the message.

    Raises:
        ValueError: an index is out of range.
    """
    resolved = sorted({index + count if index < 0 else index for index in indices})
    if not resolved or resolved[0] < 0 or resolved[-1] >= count:
        asked = f"{option}: " if option else ""
        raise ValueError(
            f"{asked}{what} {list(indices)} of a network with {count} {what}s: use 0 … "
            f"{count - 1}, or negative numbers from the end."
        )
    return tuple(resolved)
