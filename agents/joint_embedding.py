"""Joint embedding: methods that judge the projected views of a whole batch at once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from agents.optimizers import configure
from agents.pretraining import Pretraining
from callbacks.step_outputs import PretrainingOutputs, step_result
from config.hparams import Hparams
from datamodules.loading import Batch
from models.backbones.base import Backbone
from models.measures.feature_statistics import mean_std
from models.precision import at_least_float32
from utils.distributed import gather_batch

_COLLAPSED = 0.1  # standard deviation below which embeddings hardly vary


class _Judged(NamedTuple):
    """Features `(N, D)` and embeddings `(N, D')` of every view, and their loss.

    Attributes:
        loss: the sum that is minimised.
        own_loss: the method's own part of it.
        scalars: what else to log.
    """

    features: Sequence[Tensor]
    embeddings: Sequence[Tensor]
    loss: Tensor
    own_loss: Tensor
    scalars: dict[str, Tensor | float]


class JointEmbedding(Pretraining):
    """Views of an image → backbone → projector → a loss on the embeddings of the whole batch.

    Args:
        backbone: is trained and saved.
        hparams: the method's own group, `optim`, and the batch size.

    Attributes:
        against_collapse: advice on what else helps.
    """

    monitor = ("val/loss", "min")
    against_collapse: ClassVar[str] = "raise the batch size"

    def __init__(self, backbone: Backbone, hparams: Hparams) -> None:
        super().__init__(backbone, hparams)
        self.backbone = backbone
        self.projector = self.make_projector(backbone.embed_dim, hparams)

    @staticmethod
    @abstractmethod
    def make_projector(width: int, hparams: Hparams) -> nn.Module:
        """Builds the network between the pooled features `(N, width)` and the loss."""

    @abstractmethod
    def loss(self, z: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Returns the loss, and what else to log.

        Args:
            z: embeddings `(N, D)` of every view, over the batch of all processes.
        """

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Loss of one batch; callbacks see features and embeddings."""
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """The same on held-out images, whose views never change."""
        return self._step(batch, "val")

    def _step(self, batch: Batch, split: str) -> dict[str, Any]:
        judged = self._judge(batch)
        first, second = (z.detach() for z in judged.embeddings[:2])
        scalars = {**judged.scalars, "embedding_std": mean_std(*at_least_float32(first))}
        self.log_step(split, judged.own_loss, scalars, len(first))
        outputs = PretrainingOutputs(judged.features[0].detach(), (first, second))
        return step_result(judged.loss, outputs)

    def _judge(self, batch: Batch) -> _Judged:
        # One view at a time, as in the official code: BatchNorm statistics are per view.
        features, mutual_information = self.information.split(
            [self.features(chunks) for chunks in self.views(batch)]
        )
        # The projector sees the whole batch, so that its BatchNorm does.
        z = [self.projector(view) for view in features]
        loss, scalars = self.loss(z)
        total, extra = self.information.added(loss, mutual_information)
        return _Judged(features, z, total, loss.detach(), {**scalars, **extra})

    def views(self, batch: Batch) -> Sequence[list[Tensor]]:
        """Returns the micro-batches of every view to embed; by default those of the batch."""
        return batch.views

    def features(self, chunks: Sequence[Tensor]) -> Tensor:
        """Returns the pooled features of one view, of all processes; see `HeadInformation.pooled`.

        Args:
            chunks: the micro-batches `(n, 3, H, W)` uint8 of this process; they may be on the host.
                The backbone sees one at a time.
        """
        if self.backbone.frozen or not torch.is_grad_enabled():
            with torch.no_grad():
                features = self.pooled_once(chunks)
        elif len(chunks) == 1:
            features = self.training_pass(self.moved(chunks[0]))
        else:
            features = self.pooled_in_chunks(chunks)
        return gather_batch(features)

    def batch_loss(self, batch: Batch) -> Tensor:
        """See `callbacks.inspection.Learner`."""
        return self._judge(batch).loss

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips if asked to; for `backbone.freeze_epochs` only the projector learns."""
        # Computed, then dropped: distributed training expects a gradient for every parameter.
        if self.current_epoch < self.settings.backbone.freeze_epochs:
            for parameter in self.backbone.parameters():
                parameter.grad = None
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> Any:
        """Optimizer and stepwise schedule; the backbone's frozen parameters are left out."""
        return configure(self, {self.backbone: 1.0, self.projector: 1.0})

    def collapse(self, numbers: Mapping[str, float]) -> list[str]:
        """See `Pretraining.collapse`."""
        if numbers["embedding_std"] < _COLLAPSED:
            return [
                f"COLLAPSED: the embeddings hardly vary (deviation {numbers['embedding_std']:.3f} "
                f"of 1). Lower optim.lr, lengthen the warm-up, or {self.against_collapse}."
            ]
        return []


def warnings_of_accumulation(hparams: Hparams, statistic: str) -> list[str]:
    """Warns that gradient accumulation does not enlarge the batch that the loss sees.

    Args:
        hparams: group `trainer`.
        statistic: what the loss computes for each batch separately.
    """
    if hparams.trainer.accumulate == 1:
        return []
    return [
        f"--trainer.accumulate {hparams.trainer.accumulate} is not a larger batch for this "
        f"loss: each batch has its own {statistic}. For a larger batch raise "
        "--data.batch_size and set --trainer.chunk_size."
    ]
