"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230), with exact batches of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from agents.base import Agent
from agents.optimizers import configure
from callbacks.step_outputs import PretrainingOutputs, step_result
from config.hparams import Hparams
from datamodules.base import ImageSource
from datamodules.loading import Batch, Loading
from datamodules.self_supervised import ViewsDataModule
from datamodules.transforms.barlow_twins import BarlowTwinsViews
from models.backbones.base import Backbone
from models.head_information import HeadInformation
from models.heads.projector import projector
from models.losses.barlow_twins import (
    barlow_twins_loss,
    cross_correlation,
    lower_bound,
    noise_floor,
    summarise,
)
from models.memory.chunking import forward_in_chunks
from utils.distributed import gather_batch

# λ(D-1)/(N-1) above which sampling noise, not redundancy, dominates the loss; the study's failed
# batch of 32 at width 512 lies at 0.08.
NOISE_LIMIT = 0.04


class BarlowTwins(Agent):
    """Two views of an image should have equal embeddings whose dimensions are not redundant.

    loss = scale * ( Σ_i (1 - C_ii)² + λ Σ_{i≠j} C_ij² ), C the cross-correlation over the batch of
    the projected views.

    Args:
        backbone: what is trained and kept.
        hparams: groups `barlow_twins`, `optim`, and the batch size.
    """

    monitor = ("val/loss", "min")

    def __init__(self, backbone: Backbone, hparams: Hparams) -> None:
        super().__init__()
        backbone.check_side(int(hparams.data.image_size), "data.image_size")
        self.settings = hparams
        self.backbone = backbone
        method = hparams.barlow_twins
        self.projector = projector(
            backbone.embed_dim, method.projector_dim, method.projector_layers
        )
        self.lr = float(hparams.optim.lr)
        information = hparams.head_information
        self.information = HeadInformation(backbone, information.weight, information.blocks)
        self._pooled = torch.compile(self._pool) if hparams.trainer.compile else self._pool

    @classmethod
    def build(cls, hparams: Hparams, backbone: Backbone, source: ImageSource) -> BarlowTwins:
        """See `Agent.build`."""
        return cls(backbone, hparams)

    @staticmethod
    def data(source: ImageSource, hparams: Hparams, loading: Loading) -> ViewsDataModule:
        """Two random views of every image."""
        size = int(hparams.data.image_size)
        views = BarlowTwinsViews(size, bool(hparams.data.blur))
        return ViewsDataModule(source, views, size, loading)

    def _pool(self, images: Tensor) -> Tensor:
        return self.information.pooled(self.backbone, images)

    def features(self, chunks: Sequence[Tensor]) -> Tensor:
        """Returns the pooled features of one view on all processes; see `HeadInformation.pooled`.

        Args:
            chunks: the micro-batches `(n, 3, H, W)` uint8 of this process; they may be on the host.
                The backbone sees one at a time.
        """
        if self.backbone.frozen or not torch.is_grad_enabled():
            with torch.no_grad():
                features = torch.cat([self._pool(chunk.to(self.device)) for chunk in chunks])
        elif len(chunks) == 1:
            features = self._pooled(chunks[0].to(self.device))
        else:
            features = forward_in_chunks(self.backbone, self._pool, chunks, self.device)
        return gather_batch(features)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Loss of one batch; callbacks see features and embeddings."""
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """The same on held-out images, whose views never change."""
        return self._step(batch, "val")

    def _step(self, batch: Batch, split: str) -> dict[str, Any]:
        method = self.settings.barlow_twins
        # One view after the other, as in the official code: BatchNorm statistics are a view's own.
        features, mutual_information = self.information.split(
            [self.features(chunks) for chunks in batch.views]
        )
        # The projector sees the whole batch, so that its BatchNorm does.
        z1, z2 = (self.projector(view) for view in features)
        correlation = cross_correlation(z1, z2)
        loss = method.scale * barlow_twins_loss(correlation, method.lambd)
        self._report(split, loss, correlation.detach(), z1.detach())
        if mutual_information is not None:
            loss = loss - self.information.weight * mutual_information
            self.log(f"{split}/head_information", mutual_information.detach(), batch_size=len(z1))
        outputs = PretrainingOutputs(features[0].detach(), (z1.detach(), z2.detach()))
        return step_result(loss, outputs)

    def _report(self, split: str, loss: Tensor, correlation: Tensor, z: Tensor) -> None:
        method, size = self.settings.barlow_twins, len(z)
        summary = summarise(correlation, z, rank=split == "val")
        scalars: dict[str, Any] = {
            "loss": loss.detach(),
            "diagonal_mean": summary.diagonal_mean,
            "off_diagonal_rms": summary.off_diagonal_rms,
            "embedding_std": summary.embedding_std,
            "noise_floor": method.scale * noise_floor(z.shape[1], size, method.lambd),
            "lower_bound": method.scale * lower_bound(z.shape[1], size, method.lambd),
        }
        if summary.effective_rank is not None:
            scalars["effective_rank"] = summary.effective_rank
        if split == "train" and self.trainer.optimizers:
            scalars["lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        named = {f"{split}/{name}": value for name, value in scalars.items()}
        shown = f"{split}/loss"
        self.log(shown, named.pop(shown), prog_bar=True, batch_size=size)
        self.log_dict(named, batch_size=size)

    def on_fit_start(self) -> None:
        """Warns of settings that are known to fail, before hours are spent on them."""
        warn_of_batch(self.settings)

    def configure_optimizers(self) -> Any:
        """Optimizer and stepwise schedule; the backbone's frozen parameters are left out."""
        return configure(self, {self.backbone: 1.0, self.projector: 1.0}, self.settings, self.lr)

    def in_words(self, summary: Mapping[str, Any]) -> list[str]:
        """Says what the final numbers mean."""
        split = "val" if "val/loss" in summary else "train"
        if f"{split}/loss" not in summary:
            return ["No step was finished, so there is nothing to say about the loss."]
        loss, diagonal, off, std, floor, bound = (
            summary[f"{split}/{name}"]
            for name in (
                "loss",
                "diagonal_mean",
                "off_diagonal_rms",
                "embedding_std",
                "noise_floor",
                "lower_bound",
            )
        )
        if std < 0.1:
            return [
                f"COLLAPSED: the embeddings hardly vary (deviation {std:.3f} of 1). Lower "
                "optim.lr, lengthen the warm-up, or raise the batch size."
            ]
        words = "well" if diagonal > 0.8 else "partly" if diagonal > 0.4 else "hardly"
        return [
            f"{'Validation' if split == 'val' else 'Training'} loss {loss:.1f}. With this batch "
            f"ideal features, alike in both views and independent, reach {floor:.1f} (the noise "
            f"floor), and none less than {bound:.1f}.",
            f"The two views agree {words}: mean diagonal {diagonal:.2f} (goal 1).",
            f"Redundancy between dimensions: off-diagonal RMS {off:.3f} (goal 0).",
        ]


def warn_of_batch(hparams: Hparams) -> None:
    """Warns of a batch too small for the projector, and of accumulation, which does not help."""
    batch, method = int(hparams.data.batch_size), hparams.barlow_twins
    noise = method.lambd * (method.projector_dim - 1) / (batch - 1)
    if noise > NOISE_LIMIT:
        rank_zero_warn(
            f"Batch {batch} is small for projector_dim {method.projector_dim}: "
            f"lambda*(D-1)/(N-1) = {noise:.3f} > {NOISE_LIMIT}, sampling noise dominates the loss "
            "of Barlow Twins and training is likely to fail. Raise --data.batch_size (memory stays "
            "the same with --trainer.chunk_size), or lower barlow_twins.projector_dim or lambd."
        )
    if hparams.trainer.accumulate > 1:
        rank_zero_warn(
            f"--trainer.accumulate {hparams.trainer.accumulate} is not a larger batch for Barlow "
            "Twins: each batch has its own correlation matrix. For a larger batch raise "
            "--data.batch_size and set --trainer.chunk_size."
        )
