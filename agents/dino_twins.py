"""DINO-Twins: DINO and Barlow Twins on one backbone (Tronchon & Zucker 2022).

Barlow Twins cannot collapse, nor can SIGReg, LeJEPA's term, which may replace it. Switch
`dino.centering`, `sharpening`, `ema` or `multi_crop` off to try whether DINO still needs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from agents.barlow_twins import BarlowTwins, warnings_of_batch
from agents.dino import DINO, NUM_GLOBAL
from agents.joint_embedding import warnings_of_accumulation
from agents.lejepa import STATISTIC, LeJEPA, sigreg_in_words, sigreg_of_views
from agents.optimizers import configure
from config.hparams import Hparams
from datamodules.loading import Batch
from models.backbones.base import Backbone
from models.losses.barlow_twins import barlow_twins_loss, cross_correlation, summarise
from models.losses.dino import dino_loss
from models.measures.feature_statistics import mean_std
from models.precision import at_least_float32
from utils.distributed import gather_batch


class DINOTwins(DINO):
    """loss = L_DINO + β L, the student's backbone with two heads.

    L is the mean of L_BT over pairs of views or, with `dino_twins.term sigreg`, the mean of SIGReg
    over views.

    Args:
        backbone: the student's.
        hparams: groups `dino_twins`, `dino`, `barlow_twins` or `lejepa`, `optim`, `trainer`.
    """

    def __init__(self, backbone: Backbone, hparams: Hparams) -> None:
        super().__init__(backbone, hparams)
        self.is_sigreg = hparams.dino_twins.term == "sigreg"
        second = LeJEPA if self.is_sigreg else BarlowTwins
        self.projector = second.make_projector(backbone.embed_dim, hparams)

    @property
    def judges_together(self) -> bool:
        """Always: the second loss is defined on the whole batch."""
        return True

    def student_loss(
        self, batch: Batch, targets: Sequence[Tensor]
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """See `DINO.student_loss`; the second loss needs the whole batch of features at once."""
        features, mutual_information = self.information.split(self.embed(batch.views))
        logits = self.student.head.of_views(features)
        dino = dino_loss(logits, targets, self.settings.dino.student_temp)

        # One view at a time: BatchNorm statistics are per view, over all processes.
        z = [self.projector(gather_batch(view)) for view in features]
        second, scalars = self._sigreg(z) if self.is_sigreg else self._barlow_twins(z)
        total = dino + float(self.settings.dino_twins.beta) * second
        loss, extra = self.information.added(total, mutual_information)
        return loss, {
            **extra,
            "dino_loss": dino.detach(),
            **scalars,
            "embedding_std": mean_std(*at_least_float32(z[0].detach())),
        }

    def _barlow_twins(self, z: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor | float]]:
        which = pairs(len(z), self.settings.dino_twins.pairs)
        correlations = [cross_correlation(z[i], z[j]) for i, j in which]
        lambd = float(self.settings.barlow_twins.lambd)
        loss = torch.stack([barlow_twins_loss(c, lambd) for c in correlations]).mean()
        summary = summarise(correlations[0].detach())
        return loss, {
            "barlow_twins_loss": loss.detach(),
            "diagonal_mean": summary.diagonal_mean,
            "off_diagonal_rms": summary.off_diagonal_rms,
        }

    def _sigreg(self, z: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor | float]]:
        step = self.trainer.global_step if self.training else 0
        return sigreg_of_views(z, self.settings, step)

    def warnings(self) -> list[str]:
        """See `Agent.warnings`."""
        if self.is_sigreg:
            return warnings_of_accumulation(self.settings, STATISTIC)
        return warnings_of_batch(self.settings)

    def configure_optimizers(self) -> Any:
        """Optimizer and stepwise schedule of the student and the projector."""
        return configure(self, {self.student: 1.0, self.projector: 1.0})

    def verdict(self, split: str, numbers: Mapping[str, float]) -> list[str]:
        """See `Pretraining.verdict`."""
        second = (
            sigreg_in_words(numbers)
            if self.is_sigreg
            else "The two global views agree with a mean diagonal of "
            f"{numbers['diagonal_mean']:z.2f} (goal 1)."
        )
        return [*super().verdict(split, {**numbers, "loss": numbers["dino_loss"]}), second]


def pairs(num_views: int, which: str) -> list[tuple[int, int]]:
    """Returns the unordered pairs of views that are correlated.

    Args:
        num_views: global ones first.
        which: `global` (the two global views), `global_local` (at least one global) or `all`.
    """
    smallest = {"global": (NUM_GLOBAL, NUM_GLOBAL), "global_local": (NUM_GLOBAL, num_views)}
    first, second = smallest.get(which, (num_views, num_views))
    return [(i, j) for i, j in combinations(range(num_views), 2) if i < first and j < second]
