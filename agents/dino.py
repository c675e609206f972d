"""DINO: self-distillation with no labels (Caron et al. 2021, arXiv 2104.14294)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from agents.optimizers import configure, set_weight_decay
from agents.pretraining import Pretraining
from callbacks.step_outputs import PretrainingOutputs, step_result
from config.hparams import DINOHparams, Hparams
from config.resolve import processes_of
from datamodules.loading import Batch, Loading
from datamodules.self_supervised import ViewsDataModule
from datamodules.sources import ImageSource
from datamodules.transforms.dino import MultiCropViews
from models.backbones.base import Backbone
from models.ema import teacher_of, update
from models.heads.dino import DINOHead
from models.losses.dino import (
    Center,
    dino_loss,
    entropies,
    held_bytes,
    num_pairs,
    pieces,
    teacher_targets,
    view_loss,
)
from models.memory.accumulation import sum_in_pieces
from utils.device import is_mixed
from utils.optim import clip_each
from utils.schedules import cosine, linear

NUM_GLOBAL = 2  # views the teacher sees


class Branch(nn.Module):
    """A backbone with a head: the student, or the teacher."""

    def __init__(self, backbone: Backbone, head: DINOHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head


class DINO(Pretraining):
    """A student predicts, from every view, its own moving average's output for the global views.

    loss = mean over pairs of views of -Σ_k p_k log q_k, with
    p = softmax((teacher - centre) / τ_t) and q = softmax(student / τ_s).

    Args:
        backbone: the student's.
        hparams: groups `dino`, `optim`, `trainer`, resolved for the data.
    """

    monitor = None  # a collapsed network has the lowest loss
    loss_width = "--dino.out_dim"

    def __init__(self, backbone: Backbone, hparams: Hparams) -> None:
        super().__init__(backbone, hparams)
        dino = hparams.dino
        if _num_local(dino):
            backbone.check_side(int(dino.local_crop_size), "dino.local_crop_size")
        head = DINOHead(
            backbone.embed_dim,
            int(dino.out_dim),
            int(dino.hidden_dim),
            dino.bottleneck_dim,
            dino.head_layers,
            dino.norm_last_layer,
            bool(dino.head_batch_norm),
        )
        self.student = Branch(backbone, head)
        self.teacher = teacher_of(self.student)
        self.center = Center(int(dino.out_dim), dino.center_momentum)

    @staticmethod
    def data(source: ImageSource, hparams: Hparams, loading: Loading) -> ViewsDataModule:
        """Two global and several local views of every image."""
        dino, data = hparams.dino, hparams.data
        size = int(data.image_size)
        views = MultiCropViews(
            size,
            int(dino.local_crop_size),
            _num_local(dino),
            (dino.global_crops_scale[0], dino.global_crops_scale[1]),
            (dino.local_crops_scale[0], dino.local_crops_scale[1]),
            bool(data.blur),
        )
        return ViewsDataModule(source, views, size, loading)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Loss of one batch; callbacks see the teacher's features of the first view."""
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """The same on held-out images, whose views never change; the centre stays as it is."""
        return self._step(batch, "val")

    def _step(self, batch: Batch, split: str) -> dict[str, Any]:
        features, logits = self._teach(batch.views[:NUM_GLOBAL])
        targets = self._targets(logits)
        loss, scalars = self.student_loss(batch, targets)
        if split == "train" and self.settings.dino.centering:
            for each in logits:
                self.center.collect(each)
        named = {**self._of_teacher(targets), **scalars}
        own_loss = self.information.without(loss, scalars)
        self.log_step(split, own_loss, named, len(targets[0]), apart=True)
        return step_result(loss, PretrainingOutputs(features[0]))

    @torch.no_grad()
    def _teach(self, views: Sequence[Sequence[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
        features = [
            torch.cat([self.teacher.backbone(self.moved(chunk)).pooled for chunk in chunks])
            for chunks in views
        ]
        return features, self.teacher.head.of_views(features)

    def _targets(self, logits: Sequence[Tensor]) -> list[Tensor]:
        center, temperature = self.center.value, self.teacher_temperature()
        if not self.settings.dino.centering:  # a resumed run may still hold one
            center = torch.zeros_like(center)
        return [teacher_targets(each, center, temperature) for each in logits]

    def _of_teacher(self, targets: Sequence[Tensor]) -> dict[str, Tensor | float]:
        of_each, of_mean = entropies(targets)
        return {
            "chance_level": math.log(targets[0].shape[-1]),
            "teacher_entropy": of_each,
            "teacher_mean_entropy": of_mean,
            "teacher_temperature": self.teacher_temperature(),
            "center_norm": self.center.value.norm(),
        }

    def student_loss(
        self, batch: Batch, targets: Sequence[Tensor]
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """Loss against the teacher's targets, `(N, K)` for each global view.

        Without chunks: one backbone pass per resolution, one head pass over all views. With chunks:
        forward and backward of one chunk of one view at a time, unless the head has BatchNorm.

        Returns:
            The loss, and its parts by name where it has several.
        """
        apart = self._in_chunks(batch.views) and not self.judges_together
        if apart and torch.is_grad_enabled():
            return self._loss_in_pieces(batch.views, targets)
        features, mutual_information = self.information.split(self.embed(batch.views))
        logits = self.student.head.of_views(features)
        loss = dino_loss(logits, targets, self.settings.dino.student_temp)
        return self.information.added(loss, mutual_information)

    def _loss_in_pieces(
        self, views: Sequence[Sequence[Tensor]], targets: Sequence[Tensor]
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        trained = [p for p in self.student.parameters() if p.requires_grad]
        pairs = num_pairs(len(views), len(targets)) * len(targets[0])
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        shares: list[Mapping[str, Tensor | float]] = []  # what each adds to the log

        def loss(chunk: Tensor, against: Sequence[Tensor]) -> Tensor:
            (features,), mutual_information = self.information.split([self.pooled_once([chunk])])
            logits = self.student.head(features)
            found = view_loss(logits, against, self.settings.dino.student_temp) / pairs
            share = len(chunk) / (len(views) * len(targets[0]))
            total, scalars = self.information.added(
                found, None if mutual_information is None else share * mutual_information
            )
            shares.append(scalars)
            return total

        each = (partial(loss, chunk, against) for chunk, against in pieces(views, targets))
        total = sum_in_pieces(each, trained, scaler.get_scale() if scaler else 1.0)
        return total, {name: sum(each[name] for each in shares) for name in shares[0]}

    def embed(self, views: Sequence[list[Tensor]]) -> list[Tensor]:
        """Returns the student's features of every view; see `HeadInformation.pooled`.

        Args:
            views: each as micro-batches `(n, 3, H, W)` uint8, which may be on the host.
        """
        if not torch.is_grad_enabled():
            return [self.pooled_once(chunks) for chunks in views]
        if self._in_chunks(views):
            return [self.pooled_in_chunks(chunks) for chunks in views]
        features: list[Tensor] = []
        for _, group in groupby(views, key=lambda chunks: chunks[0].shape[-2:]):
            # Moved one by one: joined on the host they would leave its pinned memory.
            images = [self.moved(chunks[0]) for chunks in group]
            pooled = self.training_pass(torch.cat(images))
            features += pooled.chunk(len(images))
        return features

    def _in_chunks(self, views: Sequence[Sequence[Tensor]]) -> bool:
        # A chunk as large as the batch still means one view at a time.
        return isinstance(self.settings.trainer.chunk_size, int) or len(views[0]) > 1

    def teacher_temperature(self) -> float:
        """Returns τ_t, which rises linearly at first; without sharpening it equals τ_s."""
        dino = self.settings.dino
        if not dino.sharpening:
            return dino.student_temp
        if self.trainer.state.fn != "fit":
            return float(dino.teacher_temp)
        return linear(
            self.trainer.global_step,
            int(dino.warmup_teacher_temp_steps),
            float(dino.warmup_teacher_temp),
            float(dino.teacher_temp),
        )

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """Steps, then updates teacher and centre, once however many batches were accumulated."""
        dino, step = self.settings.dino, self.trainer.global_step
        total = int(self.trainer.estimated_stepping_batches)
        optim = self.settings.optim
        decay = cosine(step, total, float(optim.weight_decay), float(optim.final_weight_decay))
        set_weight_decay(self.trainer.optimizers[0], decay)
        super().optimizer_step(*arguments, **named)
        momentum = cosine(step, total, float(dino.momentum_teacher), 1.0) if dino.ema else 0.0
        update(self.teacher, self.student, momentum)
        self.center.update()
        self.log_dict({"train/momentum_teacher": momentum, "train/weight_decay": decay})

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the unscaled gradient of each tensor; the last layer is frozen at first."""
        dino = self.settings.dino
        if dino.clip_grad:
            clip_each(self.student.parameters(), dino.clip_grad)
        if self.trainer.global_step < int(dino.freeze_last_layer_steps):
            for parameter in self.student.head.last_layer.parameters():
                parameter.grad = None
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> Any:
        """Optimizer and stepwise schedule of the student."""
        return configure(self, {self.student: 1.0})

    def verdict(self, split: str, numbers: Mapping[str, float]) -> list[str]:
        """See `Pretraining.verdict`."""
        loss, of_one = numbers["loss"], numbers["teacher_entropy"]
        of_batch = numbers["teacher_mean_entropy"]
        most = math.log(int(self.settings.dino.out_dim))
        return [
            f"Loss {loss:.2f} ({split}); uniform outputs would have ln(out_dim) = {most:.2f}. It "
            "says little by itself: a collapsed network has a low loss too.",
            f"The teacher spreads one image over {math.exp(of_one):.0f} of "
            f"{self.settings.dino.out_dim} outputs (exp of the entropy), and a whole batch over "
            f"{math.exp(of_batch):.0f}: the larger the gap, the better it tells images apart.",
        ]

    @property
    def backbone(self) -> Backbone:  # type: ignore[override]
        """The backbone that is saved and inspected: `dino.export` chooses, usually the teacher."""
        exported = self.student if self.settings.dino.export == "student" else self.teacher
        return exported.backbone

    @property
    def trained_backbone(self) -> Backbone:
        """The student's backbone, whichever is saved."""
        return self.student.backbone

    def batch_loss(self, batch: Batch) -> Tensor:
        """See `callbacks.inspection.Learner`; the centre collects nothing."""
        _, logits = self._teach(batch.views[:NUM_GLOBAL])
        return self.student_loss(batch, self._targets(logits))[0]

    @property
    def judges_together(self) -> bool:
        """Whether the loss needs all views of a batch at once, not one after the other."""
        return self.student.head.batch_norm

    def passes_again(self, sizes: tuple[int, ...], chunks: int) -> tuple[int, ...]:
        """See `Agent`: the teacher's views, and all of them if chunks (even one) are recomputed."""
        recomputed = chunks and self.judges_together and not self.trained_backbone.frozen
        return (*sizes[:NUM_GLOBAL], *(sizes if recomputed else ()))

    def held_by_loss(self, images: int, chunk: int | None) -> int:
        """See `Agent`. Chunks save student logits; the teacher's are kept for all images."""
        dino, trainer = self.settings.dino, self.settings.trainer
        if self.student.head.batch_norm:  # which sees the images of all processes
            images *= processes_of(self.settings)
        apart = chunk is not None and not self.judges_together
        views = NUM_GLOBAL + _num_local(dino)
        seen = min(chunk or images, images) if apart else images  # of a view
        rows = NUM_GLOBAL * images + (seen if apart else views * images)
        logit = 2 if is_mixed(trainer.precision) else 4
        return held_bytes(int(dino.out_dim), rows, images + seen, logit)


def _num_local(dino: DINOHparams) -> int:
    """Returns the number of views that only the student sees."""
    return int(dino.local_crops_number) if dino.multi_crop else 0
