"""DINO's loss and centre (Caron et al. 2021, arXiv 2104.14294, section 3.1, algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from models.precision import at_least_float32
from utils.distributed import sum_over_processes


def teacher_targets(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """softmax((t - c) / τ) of the teacher's logits `(N, K)`, in float32 or better, no gradient."""
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        (logits,) = at_least_float32(logits)
        return ((logits - center) / temperature).softmax(-1)


def view_loss(logits: Tensor, targets: Sequence[Tensor], temperature: float) -> Tensor:
    """Σ over targets and images of the cross-entropy -Σ_k p_k log softmax(s / τ)_k.

    Args:
        logits: of the student for one view, `(N, K)`.
        targets: of the teacher for other views of the same images, `(N, K)` each.
        temperature: τ of the student.
    """
    with torch.autocast(logits.device.type, enabled=False):
        (logits,) = at_least_float32(logits)
        log_probabilities = (logits / temperature).log_softmax(-1)
        return torch.stack([-(t * log_probabilities).sum() for t in targets]).sum()


def dino_loss(logits: Sequence[Tensor], targets: Sequence[Tensor], temperature: float) -> Tensor:
    """Mean cross-entropy over images and all pairs of a target and another view.

    Args:
        logits: of the student, `(N, K)` a view.
        targets: of the teacher for the first views, `(N, K)` each.
        temperature: τ of the student.
    """
    losses = [view_loss(s, others(targets, view), temperature) for view, s in enumerate(logits)]
    return torch.stack(losses).sum() / (num_pairs(len(logits), len(targets)) * len(logits[0]))


def others(targets: Sequence[Tensor], view: int) -> list[Tensor]:
    """Returns the targets of all other views."""
    return [target for index, target in enumerate(targets) if index != view]


def pieces(
    views: Sequence[Sequence[Tensor]], targets: Sequence[Tensor]
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yields each micro-batch of each view, and its rows of the targets.

    Args:
        views: each as micro-batches `(n, 3, H, W)`, n summing to N.
        targets: of the teacher for the first views, `(N, K)` each.
    """
    for view, chunks in enumerate(views):
        start = 0
        for chunk in chunks:
            rows = slice(start, start := start + len(chunk))
            yield chunk, [target[rows] for target in others(targets, view)]


def num_pairs(views: int, targets: int) -> int:
    """Number of pairs of a target and another view; the first views give the targets."""
    return targets * (views - 1)


def held_bytes(outputs: int, rows: int, passing: int, of_logit: int) -> int:
    """Returns the peak memory of the loss in bytes.

    That is for each compared row the logits, and the float32 results of `teacher_targets` and
    `view_loss`, plus temporary float32 rows.

    Args:
        outputs: K.
        rows: N for each target of the teacher, plus the student's rows of one pass.
        passing: temporary rows.
        of_logit: bytes per logit of the head.
    """
    return outputs * (rows * (of_logit + 4) + passing * 4)


class Center(nn.Module):
    """Running mean of the teacher's outputs, which centring subtracts: c ← m c + (1 - m) mean(t).

    Collected outputs count only from the next `update` on. So every batch is centred by earlier
    ones, and all batches of one step of gradient accumulation are centred in the same way.

    Args:
        dim: K.
        momentum: m.

    Attributes:
        value: c, `(1, K)`; saved in the checkpoint.
    """

    value: Tensor

    def __init__(self, dim: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(1, dim))
        self._sum: Tensor | None = None
        self._count = 0

    @torch.no_grad()
    def collect(self, logits: Tensor) -> None:
        """Adds teacher outputs `(N, K)`."""
        total = logits.to(self.value.dtype).sum(0, keepdim=True)
        self._sum = total if self._sum is None else self._sum + total
        self._count += len(logits)

    @torch.no_grad()
    def update(self) -> None:
        """Updates c with the mean of the outputs collected on all processes, and clears them."""
        if self._sum is None:
            return
        count = self._sum.new_full((), self._count)
        mean = sum_over_processes(self._sum) / sum_over_processes(count)
        self.value.mul_(self.momentum).add_(mean, alpha=1 - self.momentum)
        self._sum, self._count = None, 0


def entropy(probabilities: Tensor) -> Tensor:
    """-Σ_k p_k log p_k of `(…, K)`, in nats."""
    return torch.special.entr(probabilities).sum(-1)


def entropies(targets: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the mean entropy of targets `(N, K)`, and the entropy of their mean.

    One target after the other: stacking would copy them, and with many outputs they are large.
    """
    of_each = torch.stack([entropy(each).mean() for each in targets]).mean()
    return of_each, entropy(torch.stack([each.mean(0) for each in targets]).mean(0))
