"""How well attention finds objects, compared with chance.

Jaccard after DINO (Caron et al. 2021, fig. 4; github.com/facebookresearch/dino/issues/54): the
fewest patches with 60 % of a head's attention against every object; the best head counts. This
choice uses the truth, so even random maps score well. The other numbers do not choose a head, and
each is compared with chance, mostly with displaced maps: the same maps, shifted cyclically.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision

from models.attention import mass_mask
from utils.palette import VOID

_SHIFTS = 8  # displacements that estimate chance
_MOST_HEADS = 12  # bits of the code that the masks of all heads form in a patch
_TINY = 1e-12


@dataclass(frozen=True)
class Quality:
    """One block's attention over a set of images.

    Attributes:
        jaccard: mean over images of the mean over their objects of the best head's IoU.
        jaccard_chance: the same for displaced maps.
        jaccard_by_head: the same for every single head, `(heads,)`.
        lift: log2 of (attention on objects / their share of the area), `(heads,)`.
        precision: average precision of attention as a score for object patches, `(heads,)`; NaN if
            there are no object patches, which are covered by more than half.
        precision_chance: the share of object patches.
        information: share of the entropy of a patch's class that the masks of all heads together
            explain, minus the same for displaced masks; NaN for more than 12 heads.
        images: number of measured images.
    """

    jaccard: float
    jaccard_chance: float
    jaccard_by_head: Tensor
    lift: Tensor
    precision: Tensor
    precision_chance: float
    information: float
    images: int

    @property
    def jaccard_corrected(self) -> float:
        """(J - chance) / (1 - chance): 0 is chance, 1 is perfect."""
        return (self.jaccard - self.jaccard_chance) / (1 - self.jaccard_chance)

    def scalars(self) -> dict[str, float]:
        """Returns one number of each kind, averaged over heads if none is chosen."""
        return {
            "jaccard": self.jaccard,
            "jaccard_chance": self.jaccard_chance,
            "jaccard_corrected": self.jaccard_corrected,
            "mass_lift": float(self.lift.mean()),
            "average_precision": float(self.precision.mean()),
            "average_precision_chance": self.precision_chance,
            "information": self.information,
        }


class AttentionMeter:
    """Collects one block's attention on labelled images.

    Args:
        mass: share of the attention inside a mask.
    """

    def __init__(self, mass: float = 0.6) -> None:
        self.mass = mass
        self.generator = torch.Generator().manual_seed(0)  # the same shifts every time
        self.rows: dict[str, list[Tensor]] = {}
        self.joint: Tensor | None = None  # patches by class and code, (classes, 2^heads)
        self.joint_displaced: Tensor | None = None

    def update(self, maps: Tensor, counts: Tensor) -> None:
        """Measures one image; skips images without objects or without background.

        Args:
            maps: attention over patches, `(heads, h, w)`, not negative.
            counts: `(C, h*w)`, see `pixel_counts`; class 0 is the background.
        """
        valid = counts.sum(0) > 0
        share = counts[1:].sum(0) / counts.sum(0).clamp_min(1)
        if not (share > 0).any() or (share[valid] == 1).all():
            return
        masks = mass_mask(maps, self.mass)
        displaced = self._displaced(maps, masks)
        ious = object_ious(masks, counts)
        chance = [object_ious(moved, counts) for moved in displaced]
        flat, truth = maps.flatten(1)[:, valid], (share > 0.5)[valid]
        found = {
            "best": ious.amax(1).mean(),
            "chance": torch.stack([each.amax(1).mean() for each in chance]).mean(),
            "by_head": ious.mean(0),
            "lift": mass_lift(flat, share[valid]),
        }
        if truth.any():
            precisions = [binary_average_precision(head, truth.int()) for head in flat]
            found |= {"precision": torch.stack(precisions), "share": truth.float().mean()}
        for name, value in found.items():
            self.rows.setdefault(name, []).append(value)
        if len(maps) <= _MOST_HEADS:
            self.joint = _codes(self.joint, masks, counts)
            self.joint_displaced = _codes(self.joint_displaced, displaced[0], counts)

    def _displaced(self, maps: Tensor, masks: Tensor) -> list[Tensor]:
        """Returns the masks of displaced maps.

        They are the displaced masks, unless patches with equal attention lie on the border of a
        mask: then `mass_mask` takes the first ones, which depends on the displacement.
        """
        least_inside = maps.masked_fill(~masks, math.inf).flatten(1).amin(1)
        tied = (least_inside <= maps.masked_fill(masks, -math.inf).flatten(1).amax(1)).any()
        shifts = [
            [
                int(torch.randint(1, max(2, side), (), generator=self.generator))
                for side in maps.shape[1:]
            ]
            for _ in range(_SHIFTS)
        ]
        if tied:
            return [mass_mask(maps.roll(by, (-2, -1)), self.mass) for by in shifts]
        return [masks.roll(by, (-2, -1)) for by in shifts]

    def compute(self) -> Quality:
        """Returns the numbers.

        Raises:
            ValueError: no image was measured.
        """
        if "best" not in self.rows:
            raise ValueError("There is no image with objects and background to measure on.")
        means = {name: torch.stack(values).mean(0) for name, values in self.rows.items()}
        unknown = torch.tensor(math.nan)
        information = math.nan
        if self.joint is not None and self.joint_displaced is not None:
            information = uncertainty_coefficient(self.joint) - uncertainty_coefficient(
                self.joint_displaced
            )
        return Quality(
            jaccard=float(means["best"]),
            jaccard_chance=float(means["chance"]),
            jaccard_by_head=means["by_head"],
            lift=means["lift"],
            precision=means.get("precision", unknown.expand_as(means["lift"])),
            precision_chance=float(means.get("share", unknown)),
            information=information,
            images=len(self.rows["best"]),
        )


def _codes(joint: Tensor | None, masks: Tensor, counts: Tensor) -> Tensor:
    """Adds the patches of an image by class and code: one bit per head whose mask holds them."""
    valid = counts.sum(0) > 0
    classes, size = counts.argmax(0)[valid], 2 ** len(masks)
    code = (masks.flatten(1)[:, valid] * 2 ** torch.arange(len(masks))[:, None]).sum(0)
    table = torch.bincount(classes * size + code, minlength=len(counts) * size).view(-1, size)
    return table if joint is None else joint + table


def pixel_counts(labels: Tensor, grid: tuple[int, int], num_classes: int) -> Tensor:
    """Counts the pixels of every class in every patch, without void.

    A pixel belongs to the patch that nearest-neighbour upsampling of a map would give it.

    Args:
        labels: `(H, W)`.
        grid: `(h, w)`.
        num_classes: C.

    Returns:
        `(C, h*w)` float64.
    """
    rows, columns = (
        torch.arange(size) * cells // size for size, cells in zip(labels.shape, grid, strict=True)
    )
    patches = grid[0] * grid[1]
    flat = labels.long() * patches + (rows[:, None] * grid[1] + columns)
    counted = torch.bincount(flat.flatten(), minlength=(VOID + 1) * patches)
    return counted[: num_classes * patches].view(num_classes, patches).double()


def object_ious(masks: Tensor, counts: Tensor) -> Tensor:
    """IoU, in pixels, of every head's mask with every class in the image except the background.

    Args:
        masks: `(heads, h, w)` bool.
        counts: see `pixel_counts`.

    Returns:
        `(objects, heads)`.
    """
    chosen = masks.flatten(1).double()
    objects = counts[1:][counts[1:].sum(1) > 0]
    both = objects @ chosen.T
    union = objects.sum(1)[:, None] + (chosen @ counts.sum(0))[None] - both
    return both / union.clamp_min(1)


def mass_lift(maps: Tensor, share: Tensor) -> Tensor:
    """log2(Σ a m / mean m): 0 at chance, 1 for twice as much attention as area.

    Args:
        maps: `(heads, N)`, renormalised here.
        share: foreground of each patch, `(N,)`.
    """
    attention = maps.double() / maps.double().sum(-1, keepdim=True).clamp_min(_TINY)
    return ((attention * share).sum(-1) / share.mean()).clamp_min(_TINY).log2()


def uncertainty_coefficient(table: Tensor) -> float:
    """I(Y; Q) / H(Y) of counts `(Y, Q)`, with Miller and Madow's correction of every entropy."""
    label, code, both = (
        _entropy(counts) for counts in (table.sum(1), table.sum(0), table.flatten())
    )
    return (label + code - both) / label if label > 0 else 0.0


def _entropy(counts: Tensor) -> float:
    there = counts[counts > 0].double()
    total = there.sum()
    return float((-(there / total) * (there / total).log()).sum() + (len(there) - 1) / (2 * total))
