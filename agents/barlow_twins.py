"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230), with exact batches of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from agents.joint_embedding import JointEmbedding
from config.hparams import Hparams
from datamodules.base import ImageSource
from datamodules.loading import Loading
from datamodules.self_supervised import ViewsDataModule
from datamodules.transforms.barlow_twins import BarlowTwinsViews
from models.heads.projector import projector
from models.losses.barlow_twins import (
    barlow_twins_loss,
    cross_correlation,
    lower_bound,
    noise_floor,
    summarise,
)

# λ(D-1)/(N-1) above which sampling noise, not redundancy, dominates the loss; the study's failed
# batch of 32 at width 512 lies at 0.08.
NOISE_LIMIT = 0.04


class BarlowTwins(JointEmbedding):
    """Two views of an image should have equal embeddings whose dimensions are not redundant.

    loss = scale * ( Σ_i (1 - C_ii)² + λ Σ_{i≠j} C_ij² ), C the cross-correlation over the batch of
    the projected views.
    """

    @staticmethod
    def make_projector(width: int, hparams: Hparams) -> nn.Module:
        """The paper's."""
        method = hparams.barlow_twins
        return projector(width, method.projector_dim, method.projector_layers)

    @staticmethod
    def data(source: ImageSource, hparams: Hparams, loading: Loading) -> ViewsDataModule:
        """Two random views of every image."""
        size = int(hparams.data.image_size)
        views = BarlowTwinsViews(size, bool(hparams.data.blur))
        return ViewsDataModule(source, views, size, loading)

    def loss(self, z: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor | float]]:
        """See `JointEmbedding.loss`."""
        method, (size, dim) = self.settings.barlow_twins, z[0].shape
        correlation = cross_correlation(z[0], z[1])
        summary = summarise(correlation.detach())
        return method.scale * barlow_twins_loss(correlation, method.lambd), {
            "diagonal_mean": summary.diagonal_mean,
            "off_diagonal_rms": summary.off_diagonal_rms,
            "noise_floor": method.scale * noise_floor(dim, size, method.lambd),
            "lower_bound": method.scale * lower_bound(dim, size, method.lambd),
        }

    def on_fit_start(self) -> None:
        """Warns of settings that are known to fail, before hours are spent on them."""
        warn_of_batch(self.settings)

    def verdict(self, split: str, numbers: Mapping[str, float]) -> list[str]:
        """See `JointEmbedding.verdict`."""
        diagonal = numbers["diagonal_mean"]
        words = "well" if diagonal > 0.8 else "partly" if diagonal > 0.4 else "hardly"
        return [
            f"{'Validation' if split == 'val' else 'Training'} loss {numbers['loss']:.1f}. With "
            "this batch ideal features, alike in both views and independent, reach "
            f"{numbers['noise_floor']:.1f} (the noise floor), and none less than "
            f"{numbers['lower_bound']:.1f}.",
            f"The two views agree {words}: mean diagonal {diagonal:.2f} (goal 1).",
            "Redundancy between dimensions: off-diagonal RMS "
            f"{numbers['off_diagonal_rms']:.3f} (goal 0).",
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
