"""LeJEPA (Balestriero & LeCun 2025, arXiv 2511.08544): no teacher, no pairs, one weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from agents.joint_embedding import JointEmbedding, warnings_of_accumulation
from config.hparams import Hparams
from datamodules.loading import Loading
from datamodules.seeding import generator
from datamodules.self_supervised import ViewsDataModule
from datamodules.sources import ImageSource
from datamodules.transforms.lejepa import LeJEPAViews
from models.heads.projector import projector
from models.losses.lejepa import (
    collapsed_sigreg,
    expected_sigreg,
    prediction_loss,
    random_directions,
    sigreg,
)

STATISTIC = "distribution, which is compared with a Gaussian"


class LeJEPA(JointEmbedding):
    """Each view of an image predicts the mean of its views; embeddings are spread like N(0, I).

    loss = (1 - λ) mean_v ‖z_v - z̄‖² / K + λ mean_v SIGReg(z_v)
    """

    against_collapse = "raise lejepa.lambd"

    @staticmethod
    def make_projector(width: int, hparams: Hparams) -> nn.Module:
        """Builds that of the authors' minimal example, with a final bias: SIGReg tests the mean."""
        method = hparams.lejepa
        return projector(width, method.projector_dim, 3, hidden=method.hidden_dim, bias=True)

    @staticmethod
    def data(source: ImageSource, hparams: Hparams, loading: Loading) -> ViewsDataModule:
        """Several random views of every image."""
        size, method = int(hparams.data.image_size), hparams.lejepa
        scale = (method.crop_scale[0], method.crop_scale[1])
        views = LeJEPAViews(size, method.views, scale, bool(hparams.data.blur))
        return ViewsDataModule(source, views, size, loading)

    def loss(self, z: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor | float]]:
        """See `JointEmbedding.loss`."""
        weight = self.settings.lejepa.lambd
        prediction = prediction_loss(torch.stack(list(z)))
        step = self.trainer.global_step if self.training else 0
        normality, scalars = sigreg_of_views(z, self.settings, step)
        return (1 - weight) * prediction + weight * normality, {
            "prediction": prediction.detach(),
            **scalars,
            "noise_floor": weight * expected_sigreg(*_integral(self.settings)),
        }

    def warnings(self) -> list[str]:
        """See `Agent.warnings`."""
        return warnings_of_accumulation(self.settings, STATISTIC)

    def verdict(self, split: str, numbers: Mapping[str, float]) -> list[str]:
        """See `Pretraining.verdict`."""
        independent = 1 - 1 / self.settings.lejepa.views
        prediction, normality = numbers["prediction"], numbers["sigreg"]
        gaussian, collapsed = normality - numbers["sigreg_excess"], numbers["sigreg_collapsed"]
        if normality > (gaussian + collapsed) / 2:
            return [
                f"COLLAPSED, hardly trained, or spread too widely: SIGReg is {normality:.1f}; a "
                f"Gaussian has {gaussian:.2f}, embeddings that are all 0 {collapsed:.1f}. Train "
                f"longer, lengthen the warm-up, or {self.against_collapse}."
            ]
        share = prediction / independent
        words = "well" if share < 0.2 else "partly" if share < 0.6 else "hardly"
        return [
            f"{'Validation' if split == 'val' else 'Training'} loss {numbers['loss']:.3f}. Views "
            f"that agree, with Gaussian embeddings, would have {numbers['noise_floor']:.3f} (the "
            "noise floor). The authors find that this loss correlates with accuracy.",
            f"The views agree {words}: prediction {prediction:.2f} (goal 0; independent views "
            f"{independent:.2f}).",
            sigreg_in_words(numbers),
        ]


def sigreg_in_words(numbers: Mapping[str, float]) -> str:
    """Reports SIGReg beside its values for a Gaussian and for a collapse.

    Args:
        numbers: the scalars that `sigreg_of_views` returns.
    """
    found = numbers["sigreg"]
    return (
        f"Embeddings against a Gaussian: SIGReg {found:.2f} (a Gaussian "
        f"{found - numbers['sigreg_excess']:.2f}; all embeddings 0 "
        f"{numbers['sigreg_collapsed']:.1f})."
    )


def sigreg_of_views(
    z: Sequence[Tensor], hparams: Hparams, step: int
) -> tuple[Tensor, dict[str, Tensor | float]]:
    """Returns the mean of SIGReg over views, along directions that are new in every step.

    The directions depend on seed and step only: equal on all processes, and after a resume.

    Args:
        z: embeddings `(N, K)` of every view, over the batch of all processes.
        hparams: group `lejepa`, and the seed.
        step: number of the optimizer step; a fixed one gives fixed directions.

    Returns:
        The mean, and what to log: the mean, its excess over a Gaussian's, and a collapse's value.
    """
    method, integral = hparams.lejepa, _integral(hparams)
    count, dim = z[0].shape
    directions = random_directions(dim, method.slices, generator(hparams.run.seed, step))
    directions = directions.to(z[0].device)
    normality = torch.stack([sigreg(view, directions, *integral) for view in z]).mean()
    return normality, {
        "sigreg": normality.detach(),
        "sigreg_excess": normality.detach() - expected_sigreg(*integral),
        "sigreg_collapsed": collapsed_sigreg(*integral, count),
    }


def _integral(hparams: Hparams) -> tuple[int, float]:
    return hparams.lejepa.knots, hparams.lejepa.integration_limit
