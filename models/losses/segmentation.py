"""Losses of semantic segmentation, which ignore void pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.precision import at_least_float32
from utils.palette import VOID

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the pixels that are not void; 0 if all are.

    Args:
        logits: `(B, C, H, W)`.
        labels: `(B, H, W)` int64, 255 void.
    """
    total = F.cross_entropy(logits, labels, ignore_index=VOID, reduction="sum")
    return total / (labels != VOID).sum().clamp(min=1)


class WeightedCrossEntropy(nn.Module):
    """Cross-entropy with a weight for each class: `sum(w_y l) / sum(w_y)`.

    Args:
        weights: of the classes, `(C,)`.
    """

    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `cross_entropy`."""
        weights = self.weights.to(logits)
        total = F.cross_entropy(logits, labels, weights, ignore_index=VOID, reduction="sum")
        # Void gets weight 0; indexing it away would make the host wait for the GPU.
        counted = F.pad(weights, (0, VOID + 1 - len(weights)))[labels.long()].sum()
        return total / counted.clamp(min=torch.finfo(counted.dtype).tiny)


def inverse_frequency(pixels: Sequence[int]) -> Tensor:
    """Returns weights `(C,)` that give all classes the same total, and average to 1 per pixel.

    Args:
        pixels: of each class; an absent class weighs as much as the rarest present one.
    """
    counts = torch.tensor(pixels, dtype=torch.float32)
    there = counts > 0
    weights = counts.sum() / (there.sum() * counts)
    return torch.where(there, weights, weights[there].max())


def dice(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - Dice coefficient over the whole batch, averaged over the classes that occur in it."""
    return _of_present_classes(_published("DiceLoss"), logits, labels)


def jaccard(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - soft IoU over the whole batch, averaged over the classes that occur in it."""
    return _of_present_classes(_published("JaccardLoss"), logits, labels)


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    """Focal loss of every class against the rest, γ = 2 (Lin et al. 2017), mean over classes."""
    pixels, targets = _valid(logits, labels)
    return _published("FocalLoss")(pixels, targets) if targets.numel() else pixels.sum()


def _published(name: str) -> nn.Module:
    # Imported here, because only these losses need the package.
    from segmentation_models_pytorch import losses

    loss: nn.Module = getattr(losses, name)("multiclass")
    return loss


def _of_present_classes(loss: nn.Module, logits: Tensor, labels: Tensor) -> Tensor:
    pixels, targets = _valid(logits, labels)
    if not targets.numel():
        return pixels.sum()
    # The library averages over all classes, with 0 for absent ones: its value would depend on how
    # many classes happen to be in the batch.
    return loss(pixels, targets) * pixels.shape[1] / targets.unique().numel()


def _valid(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    # (1, C, n) and (1, n): without void pixels, so that any loss ignores them.
    valid = labels != VOID
    return logits.movedim(1, -1)[valid].T[None], labels[valid][None]


class SegmentationLoss(nn.Module):
    """A weighted sum of losses, computed in float32 or better.

    Args:
        losses: the terms.
        weights: one each.
    """

    def __init__(self, losses: Sequence[Loss], weights: Sequence[float]) -> None:
        super().__init__()
        self.terms = list(zip(losses, weights, strict=True))
        # Losses with tensors move to the device with this module.
        self.parts = nn.ModuleList(loss for loss in losses if isinstance(loss, nn.Module))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss of logits `(B, C, H, W)` and labels `(B, H, W)`, 255 void."""
        with torch.autocast(logits.device.type, enabled=False):
            (logits,) = at_least_float32(logits)
            terms = [weight * loss(logits, labels.long()) for loss, weight in self.terms]
        return torch.stack(terms).sum()
