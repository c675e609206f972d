"""Says in words when a run is going wrong, while there is still time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from callbacks import dense_knn, online_probe
from callbacks.gradient_agreement import GradientAgreement
from callbacks.inspection import Learner
from callbacks.readout import Readout
from callbacks.step_outputs import PretrainingOutputs, outputs_of
from callbacks.throughput import Throughput
from models.measures.feature_statistics import effective_rank, mean_cosine, mean_std
from utils.logging import log_after_step

Reading = Mapping[str, float]  # medians over the last epoch, by name

# Steps before the first judgement, as fresh networks look collapsed; the larger one for long runs.
MIN_STEPS, ENOUGH_STEPS = 20, 50


@dataclass(frozen=True)
class Alarm:
    """Something that can go wrong.

    Attributes:
        needs: names of the readings it uses.
        raised: whether the readings raise it.
        words: what is wrong and what usually helps; a format string for the readings.
    """

    needs: tuple[str, ...]
    raised: Callable[[Reading], bool]
    words: str


# DINO's chance level is ln(out_dim), the largest entropy there can be.
_TEACHER = ("teacher_entropy", "teacher_mean_entropy", "chance_level")


def _says_the_same(reading: Reading) -> bool:
    # Mutual information of image and output: 0 if the teacher gives every image the same output.
    information = reading["teacher_mean_entropy"] - reading["teacher_entropy"]
    return information < 0.02 * reading["chance_level"]


def _unlearnt(what: str, metric: str) -> Alarm:
    before, now = f"{metric}/before", f"{metric}/now"
    return Alarm(
        (before, now),
        lambda r: r[now] < r[before] - max(0.02, 0.2 * r[before]),
        f"UNLEARNT: {what} worse than with the weights the run started from ({{{now}:.3f}}, before "
        f"{{{before}:.3f}}). What usually helps: a lower --optim.lr.",
    )


ALARMS: dict[str, Alarm] = {
    "collapse": Alarm(
        ("mean_cosine",),
        lambda r: r["mean_cosine"] > 0.998,
        "COLLAPSE: all images have nearly the same features (mean cosine {mean_cosine:.4f}). What "
        "usually helps: a lower --optim.lr, a longer --optim.warmup_epochs, a larger batch; for "
        "DINO centering, sharpening and ema on, and a lower --dino.teacher_temp.",
    ),
    "few_dimensions": Alarm(
        ("rank_me", "largest_rank"),
        lambda r: r["rank_me"] < max(2.0, 0.02 * r["largest_rank"]),
        "DIMENSIONS LOST: the features use {rank_me:.1f} of {largest_rank:.0f} possible dimensions "
        "(RankMe). What usually helps: a lower --optim.lr, stronger augmentations; for Barlow "
        "Twins a larger --data.batch_size or --barlow_twins.lambd; for LeJEPA a larger "
        "--lejepa.lambd.",
    ),
    "uniform_output": Alarm(
        _TEACHER,
        lambda r: _says_the_same(r) and r["teacher_entropy"] > 0.9 * r["chance_level"],
        "COLLAPSE: the teacher's output is uniform whatever the image (entropy "
        "{teacher_entropy:.2f} of at most {chance_level:.2f}), and the loss stays at ln(out_dim). "
        "What usually helps: --dino.head_batch_norm true, a lower --dino.teacher_temp, sharpening "
        "on, a smaller --dino.out_dim, more steps.",
    ),
    "one_output": Alarm(
        _TEACHER,
        lambda r: _says_the_same(r) and r["teacher_entropy"] <= 0.9 * r["chance_level"],
        "COLLAPSE: the teacher gives every image the same few outputs (entropy over the batch "
        "{teacher_mean_entropy:.2f} of {chance_level:.2f}, over one image {teacher_entropy:.2f}); "
        "the loss falls, nothing is learnt. What usually helps: --dino.head_batch_norm true, "
        "centering on, a slower teacher (--dino.momentum_teacher), a lower --optim.lr.",
    ),
    "views_disagree": Alarm(
        ("diagonal_mean",),
        lambda r: r["diagonal_mean"] < 0.05,
        "NOTHING LEARNT: two views of an image have nothing in common yet (mean diagonal "
        "{diagonal_mean:.3f}). Look at figures/views; then a higher --optim.lr, a shorter warm-up.",
    ),
    "gradient_jumps": Alarm(
        ("grad_norm", "largest_grad_norm"),
        lambda r: r["largest_grad_norm"] > 50 * r["grad_norm"],
        "GRADIENTS JUMP: norm {largest_grad_norm:.3g}, usually {grad_norm:.3g}. What usually "
        "helps: --trainer.gradient_clip 1, a lower --optim.lr, --trainer.precision 32-true.",
    ),
    "gradient_vanishes": Alarm(
        ("grad_norm",),
        lambda r: r["grad_norm"] < 1e-7,
        "GRADIENTS VANISH: norm {grad_norm:.1g}. Nothing is learnt any more: collapsed, or a loss "
        "without effect.",
    ),
    "gradient_overflows": Alarm(
        ("overflows", "loss_scale"),
        # A scaler that begins at 65,536 has halved it 16 times before it is below 1.
        lambda r: r["overflows"] > 0.5 and r["loss_scale"] < 1,
        "GRADIENTS OVERFLOW: in float16 they are not finite, however far the loss is scaled down "
        "({loss_scale:.1g}). Such steps are skipped: nothing is learnt. What helps: "
        "--trainer.precision 32-true, or bf16-mixed on GPUs that have it.",
    ),
    "gradient_is_noise": Alarm(
        ("gradient_cosine_batch", "gradient_cosine_most", "images_a_step"),
        lambda r: r["gradient_cosine_most"] < 0.1,
        "MOSTLY NOISE: the gradients of two batches of {images_a_step:.0f} images agree to "
        "{gradient_cosine_batch:.2f}, at most {gradient_cosine_most:.2f} (cosine): a step follows "
        "the draw of its images more than what images have in common. What usually helps: a larger "
        "--data.batch_size, with --trainer.chunk_size where memory is short.",
    ),
    "patches_unlearnt": _unlearnt("nearest patches tell classes", dense_knn.METRIC),
    "images_unlearnt": _unlearnt("nearest images tell classes", online_probe.KNN),
    "waits_for_data": Alarm(
        ("data_wait_share",),
        lambda r: r["data_wait_share"] > 0.5,
        "WAITING: {data_wait_share:.0%} of the time goes into waiting for images. What usually "
        "helps: more --data.num_workers, smaller images on disk.",
    ),
}


class Health(Callback):
    """Logs what tells a healthy run from a collapsed one, and raises each alarm once.

    Readings from the features `(N, D)` of a step: mean standard deviation, mean cosine between
    images, RankMe. From logged scalars: entropies of the teacher, mean diagonal. Also: the norm of
    the gradient before clipping, the share of time spent waiting for data, gradient agreement and,
    for a run that starts from weights, the readouts before its first step and now.

    Args:
        every_n_steps: when to measure.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self._alarms: dict[str, str] = {}  # words, by name
        self._over: dict[str, int] = {}  # the step since which an alarm no longer holds
        self._readings: dict[str, list[float]] = {}
        self._norm: Tensor | None = None

    @property
    def alarms(self) -> dict[str, str]:
        """Words of the raised alarms, by name. They say so if an alarm no longer holds."""
        over = {name: f" No longer from step {step} on." for name, step in self._over.items()}
        return {name: words + over.get(name, "") for name, words in self._alarms.items()}

    def state_dict(self) -> dict[str, Any]:
        """The alarms, and the readings since the last judgement."""
        alarms = {"alarms": dict(self._alarms), "over": dict(self._over)}
        return {**alarms, "readings": dict(self._readings)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them."""
        # Earlier versions saved only the alarms.
        self._alarms = state_dict["alarms"] if "readings" in state_dict else state_dict
        self._over = state_dict.get("over", {})
        self._readings = state_dict.get("readings", {})

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Measures the gradient, unscaled and unclipped."""
        if self._due(trainer):
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            self._norm = torch.nn.utils.get_total_norm(gradients)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Measures the features."""
        if self._norm is None:  # not the step to measure, or gradients are being accumulated
            return
        found = {"grad_norm": float(self._norm)}
        self._norm = None
        shown = outputs_of(outputs, PretrainingOutputs)
        if shown is not None and len(shown.features) > 1:
            features = shown.features.float()
            found |= {
                "features_std": float(mean_std(features)),
                "mean_cosine": float(mean_cosine(features)),
                "rank_me": float(effective_rank(features)),
            }
            self._readings["largest_rank"] = [float(min(features.shape))]
        named = {f"train/{name}": value for name, value in found.items()}
        pl_module.log_dict(named, logger=False)  # else repeated until the next measurement
        log_after_step(trainer, named)
        for name in (*_TEACHER, "diagonal_mean"):
            if f"train/{name}" in trainer.callback_metrics:
                found[name] = float(trainer.callback_metrics[f"train/{name}"])
        # 16-mixed finds its scale by overflows, whose steps it skips.
        found["overflows"] = float(not math.isfinite(found["grad_norm"]))
        for name, value in found.items():
            if math.isfinite(value):
                self._readings.setdefault(name, []).append(value)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judges the readings since the last judgement."""
        early = trainer.global_step < first_judgement(int(trainer.estimated_stepping_batches))
        if early or not self._readings:
            return
        reading = {name: statistics.median(values) for name, values in self._readings.items()}
        if "grad_norm" in self._readings:
            reading["largest_grad_norm"] = max(self._readings["grad_norm"])
        if scaler := getattr(trainer.precision_plugin, "scaler", None):
            reading["loss_scale"] = scaler.get_scale()
        pretrained = isinstance(pl_module, Learner) and pl_module.from_weights
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Throughput):
                reading["data_wait_share"] = callback.data_wait_share
                log_after_step(trainer, {"train/data_wait_share": callback.data_wait_share})
            judged = isinstance(callback, Readout) and pretrained
            if judged or isinstance(callback, GradientAgreement):
                reading |= callback.reading()
        self._readings = {}
        self._judge(reading, trainer.global_step)

    def _judge(self, reading: Reading, step: int) -> None:
        raised = raised_alarms(reading)
        for name, words in raised.items():
            self._over.pop(name, None)
            if name not in self._alarms:
                self._alarms[name] = f"{words} (step {step})"
                rank_zero_warn(self._alarms[name])
        for name, alarm in ALARMS.items():
            if name in self._alarms and name not in raised and can_judge(alarm, reading):
                self._over.setdefault(name, step)

    def _due(self, trainer: Trainer) -> bool:
        return trainer.global_step % self.every_n_steps == 0


def first_judgement(steps: int) -> int:
    """Returns the step from which a run of `steps` steps is judged."""
    return max(MIN_STEPS, min(ENOUGH_STEPS, steps // 6))


def raised_alarms(reading: Reading) -> dict[str, str]:
    """Returns the words of the raised alarms; those with missing readings are not raised."""
    return {
        name: alarm.words.format(**reading)
        for name, alarm in ALARMS.items()
        if can_judge(alarm, reading) and alarm.raised(reading)
    }


def can_judge(alarm: Alarm, reading: Reading) -> bool:
    """Whether all readings that an alarm needs are there."""
    return all(math.isfinite(reading.get(need, math.nan)) for need in alarm.needs)
