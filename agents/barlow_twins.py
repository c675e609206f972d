"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230), and VICReg, its nearest relative."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from agents.joint_embedding import JointEmbedding, warnings_of_accumulation
from config.hparams import Hparams
from datamodules.loading import Batch, Loading
from datamodules.seeding import generator
from datamodules.self_supervised import ViewsDataModule
from datamodules.sources import ImageSource
from datamodules.transforms.barlow_twins import BarlowTwinsViews
from models.heads.projector import projector
from models.losses.barlow_twins import (
    barlow_twins_loss,
    cross_correlation,
    lower_bound,
    mixed_loss,
    noise_floor,
    summarise,
)
from models.losses.vicreg import vicreg_terms
from models.mixing import Mixing
from utils.distributed import num_processes

# λ(D-1)/(N-1) above which sampling noise, not redundancy, dominates the loss; the study's failed
# batch of 32 at width 512 lies at 0.08.
NOISE_LIMIT = 0.04


class BarlowTwins(JointEmbedding):
    """Two views of an image should have equal embeddings whose dimensions are not redundant.

    loss = scale * ( Σ_i (1 - C_ii)² + λ Σ_{i≠j} C_ij² ), C the cross-correlation over the batch of
    the projected views. Or, with `barlow_twins.loss vicreg`, VICReg's terms on the same views and
    projector; and, with `barlow_twins.mix`, a term on mixed images (Mixed Barlow Twins).
    """

    @staticmethod
    def make_projector(width: int, hparams: Hparams) -> nn.Module:
        """Builds the paper's projector."""
        method = hparams.barlow_twins
        dim, hidden = int(method.projector_dim), int(method.hidden_dim)
        return projector(width, dim, method.projector_layers, hidden)

    @staticmethod
    def data(source: ImageSource, hparams: Hparams, loading: Loading) -> ViewsDataModule:
        """Two random views of every image."""
        size, (smallest, largest) = int(hparams.data.image_size), hparams.barlow_twins.crop_scale
        views = BarlowTwinsViews(size, (smallest, largest), bool(hparams.data.blur))
        return ViewsDataModule(source, views, size, loading)

    def loss(self, z: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor | float]]:
        """See `JointEmbedding.loss`."""
        if self.settings.barlow_twins.loss == "vicreg":
            return self._vicreg(z[0], z[1])
        return self._barlow_twins(z[0], z[1], *z[2:])

    def _barlow_twins(
        self, z1: Tensor, z2: Tensor, mixed: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        method, (size, dim) = self.settings.barlow_twins, z1.shape
        lambd = float(method.lambd)
        correlation = cross_correlation(z1, z2)
        summary = summarise(correlation.detach())
        loss = method.scale * barlow_twins_loss(correlation, lambd)
        scalars: dict[str, Tensor | float] = {
            "diagonal_mean": summary.diagonal_mean,
            "off_diagonal_rms": summary.off_diagonal_rms,
            "noise_floor": method.scale * noise_floor(dim, size, lambd),
            "lower_bound": method.scale * lower_bound(dim, size, lambd),
        }
        if mixed is not None:
            mixing = self._mixing(size // num_processes())
            order = mixing.over(num_processes()).to(z2.device)
            extra = method.mix * lambd * mixed_loss(mixed, z1, z2, mixing.alpha, order)
            loss = loss + method.scale * extra
            scalars["mixed_loss"] = method.scale * extra.detach()
        return loss, scalars

    def _vicreg(self, z1: Tensor, z2: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
        method, terms = self.settings.barlow_twins, vicreg_terms(z1, z2)
        loss = (
            method.invariance_weight * terms.invariance
            + method.variance_weight * terms.variance
            + method.covariance_weight * terms.covariance
        )
        return method.scale * loss, {name: term.detach() for name, term in terms._asdict().items()}

    def passes(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """See `Agent.passes`; the mixed image is one more."""
        return (*sizes, sizes[0]) if self.settings.barlow_twins.mix else sizes

    def views(self, batch: Batch) -> Sequence[list[Tensor]]:
        """See `JointEmbedding.views`. Images are mixed across the whole batch, not per chunk."""
        if not (self.training and self.settings.barlow_twins.mix):
            return batch.views
        # On the device: beside a GPU the CPU's cores are busy loading.
        first, second = ([self.moved(chunk) for chunk in view] for view in batch.views)
        return first, second, self._mixing(len(batch)).images(first, second)

    def _mixing(self, count: int) -> Mixing:
        # A function of the step, so that a resumed run continues exactly.
        return Mixing.draw(count, generator(self.settings.run.seed, self.trainer.global_step))

    def warnings(self) -> list[str]:
        """See `Agent.warnings`."""
        if self.settings.barlow_twins.loss == "vicreg":
            return warnings_of_accumulation(self.settings, "covariance matrices")
        return warnings_of_batch(self.settings)

    def verdict(self, split: str, numbers: Mapping[str, float]) -> list[str]:
        """See `Pretraining.verdict`."""
        title = "Validation" if split == "val" else "Training"
        if self.settings.barlow_twins.loss == "vicreg":
            return _verdict_of_vicreg(title, numbers)
        loss = numbers["loss"] - numbers.get("mixed_loss", 0.0)
        diagonal = numbers["diagonal_mean"]
        words = "well" if diagonal > 0.8 else "partly" if diagonal > 0.4 else "hardly"
        return [
            f"{title} loss {loss:.4g}. At this batch size, embeddings that are equal in both views "
            f"reach {numbers['noise_floor']:.4g} if their dimensions are independent (the noise "
            f"floor), and {numbers['lower_bound']:.4g} at best.",
            f"The two views agree {words}: mean diagonal {diagonal:z.2f} (goal 1).",
            "Redundancy between dimensions: off-diagonal RMS "
            f"{numbers['off_diagonal_rms']:.3f} (goal 0).",
        ]


def _verdict_of_vicreg(title: str, numbers: Mapping[str, float]) -> list[str]:
    distance = numbers["invariance"]
    words = "well" if distance < 0.2 else "partly" if distance < 0.8 else "hardly"
    return [
        f"{title} loss {numbers['loss']:.4g}.",
        f"The two views agree {words}: mean squared difference {distance:.3g} (goal 0; independent "
        "views of variance 1: 2).",
        f"Standard deviations fall short of 1 by {numbers['variance']:.3g} (goal 0; collapsed: 1); "
        f"covariance term {numbers['covariance']:.3g} (goal 0).",
    ]


def warnings_of_batch(hparams: Hparams) -> list[str]:
    """Warns of a batch too small for the projector, and of accumulation, which does not help."""
    batch, method = int(hparams.data.batch_size), hparams.barlow_twins
    noise = float(method.lambd) * (int(method.projector_dim) - 1) / (batch - 1)
    of_accumulation = warnings_of_accumulation(hparams, "correlation matrix")
    if noise <= NOISE_LIMIT:
        return of_accumulation
    return [
        f"Batch {batch} is small for projector_dim {method.projector_dim}: "
        f"lambda*(D-1)/(N-1) = {noise:.3f} > {NOISE_LIMIT}, sampling noise dominates the loss "
        "of Barlow Twins and training is likely to fail. Raise --data.batch_size (memory stays "
        "the same with --trainer.chunk_size), or lower barlow_twins.projector_dim or lambd.",
        *of_accumulation,
    ]
