"""Schedules as pure functions of the step, so that resuming needs no state."""

from __future__ import annotations

import math


def warmup_cosine(step: int, total: int, warmup: int, final_lr_ratio: float = 0.0) -> float:
    """Factor on the peak learning rate: linear from 0, then a cosine that ends at `final_lr_ratio`.

    Args:
        step: optimizer step, from 0.
        total: steps of the whole run; the last one, total - 1, gets `final_lr_ratio`.
        warmup: steps until the peak.
        final_lr_ratio: factor at the end and after it.
    """
    if step < warmup:
        return (step + 1) / warmup
    return cosine(step + 1 - warmup, total - warmup, 1.0, final_lr_ratio)


def warmup_constant(step: int, total: int, warmup: int) -> float:
    """Factor on the peak learning rate: linear from 0, then 1."""
    return linear(step + 1, warmup, 0.0, 1.0)


def warmup_poly(step: int, total: int, warmup: int, final_lr_ratio: float = 0.0) -> float:
    """Factor on the peak learning rate: linear from 0, then (1 - progress)^0.9."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step + 1 - warmup) / max(1, total - warmup))
    return final_lr_ratio + (1 - final_lr_ratio) * (1 - progress) ** 0.9


def cosine(step: int, total: int, start: float, end: float) -> float:
    """From `start` at step 0 to nearly `end` at step total - 1, along half a cosine; then `end`."""
    progress = min(1.0, step / max(1, total))
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def linear(step: int, length: int, start: float, end: float) -> float:
    """From `start` at step 0 to `end` at step `length`; then `end`."""
    return start + (end - start) * min(1.0, step / length) if length else end
