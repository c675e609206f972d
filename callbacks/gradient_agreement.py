"""Is my batch large enough? Measures how far the gradients of two batches agree."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from callbacks.inspection import Learner, SayOnce, device_of
from datamodules.loading import Batch
from models.measures.gradient_noise import GradientPair, compare, estimate
from models.precision import at_least_float32
from utils.distributed import failing_together, num_processes, sum_over_processes
from utils.logging import log_scalars
from utils.rng import rng_preserved
from utils.text import count

# Only the newest measurements are averaged: signal and noise change while a network learns.
WINDOW = 20
# With fewer measurements their error is not known well enough for an alarm.
FEWEST_FOR_ALARM = 5
# Largest predicted cosine for each verdict. At 0.5 the batch equals the simple noise scale.
_VERDICTS = (
    (0.2, "Mostly noise: a larger --data.batch_size gives better steps, and fewer of them an epoch "
     "(--trainer.chunk_size keeps the memory)."),
    (0.5, "More noise than signal: a larger --data.batch_size still gives better, fewer steps."),
    (0.8, "More signal than noise: a larger batch gives somewhat better steps."),
    (1.0, "Yes: a larger batch would give nearly the same steps."),
)  # fmt: skip


class GradientAgreement(Callback):
    """Logs how far the gradients of two batches agree, and what follows for the batch size.

    `train/gradient_cosine` is the cosine between the gradients of a batch and the one before it, at
    the same weights, with respect to the trained backbone's parameters. The other two are estimated
    from the newest measurements: `train/gradient_cosine_batch`, the cosine for the images of a
    whole step, gradient accumulation included, and `train/gradient_noise_scale`, the number of
    images at which half of the gradient is noise. A small cosine late in a run does not mean that
    the batch is too small: near an optimum only noise is left.

    Each measurement passes both batches forwards and backwards once more, before a step. It leaves
    gradients, BatchNorm statistics and random states unchanged. With several processes, a batch
    means that of all of them together.

    Args:
        every_n_steps: when to measure. The first step of an epoch has no batch before it, so the
            next step is measured. So it is after a resume within an epoch: saving the previous
            batch would enlarge checkpoints by its images.

    Attributes:
        images: number of images of an optimizer step.
        measured: the newest measurements.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self.say = SayOnce()
        self.images = 0
        self.measured: deque[GradientPair] = deque(maxlen=WINDOW)
        self._last_step = -1
        self._before: Batch | None = None

    def state_dict(self) -> dict[str, Any]:
        """The measurements."""
        measured = [list(each) for each in self.measured]
        return {"images": self.images, "pairs": measured, "last_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them, but not those of earlier versions, which compared halves of batches."""
        if "pairs" in state_dict:
            self.images, self._last_step = state_dict["images"], state_dict["last_step"]
            self.measured.extend(GradientPair(*each) for each in state_dict["pairs"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says so if there is nothing to compare."""
        if trainer.num_training_batches == 1:
            self.say(
                "gradient_agreement: an epoch of one batch has no second one to compare it with: "
                "nothing is measured."
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the last batch of the epoch before: the first may contain the same images."""
        self._before = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measures, at most once per step: on its first batch if there is one before it."""
        step, before = trainer.global_step, self._before
        if self._is_due(step) and before is not None:
            self._last_step = step
            found = self.measure(trainer, pl_module, before, batch)
            log_scalars(trainer, {f"train/{name}": value for name, value in found.items()})
        self._before = batch if self._is_due(step + 1) else None

    def _is_due(self, step: int) -> bool:
        return step // self.every_n_steps > self._last_step // self.every_n_steps

    def measure(
        self, trainer: Trainer, pl_module: LightningModule, before: Batch, batch: Batch
    ) -> Mapping[str, float]:
        """Returns the numbers by name; none if the gradients are not finite.

        Args:
            trainer: of the run.
            pl_module: is trained.
            before: a batch of as many other images.
            batch: of this step.

        Raises:
            TypeError: the agent is no `Learner`.
        """
        if not isinstance(pl_module, Learner):
            raise TypeError(f"{type(pl_module).__name__} is not pretrained on views.")
        with failing_together(), untouched(pl_module):
            first, second = (_gradient(trainer, pl_module, each) for each in (before, batch))
        together = len(batch) * num_processes()
        found = compare(first, second, together)
        if not all(map(math.isfinite, found)):  # no gradient, or an overflow of float16
            return {}
        self.measured.append(found)
        self.images = together * trainer.accumulate_grad_batches
        return self.numbers()

    def numbers(self) -> dict[str, float]:
        """Returns the last numbers by name; none before the first measurement."""
        if not self.measured:
            return {}
        noise = estimate(self.measured)
        found = {
            "gradient_cosine": self.measured[-1].cosine,
            "gradient_cosine_batch": noise.cosine(self.images),
        }
        scale = noise.scale
        return {**found, "gradient_noise_scale": scale} if math.isfinite(scale) else found

    def reading(self) -> dict[str, float]:
        """Returns the numbers for an alarm, once there are enough measurements."""
        if len(self.measured) < FEWEST_FOR_ALARM:
            return {}
        _, most = estimate(self.measured).cosine_range(self.images)
        extra = {"gradient_cosine_most": most, "images_a_step": float(self.images)}
        return {**self.numbers(), **extra}

    def in_words(self) -> list[str]:
        """Answers the question in words; nothing before the first measurement."""
        if not self.measured:
            return []
        noise = estimate(self.measured)
        now, double, fourfold = (noise.cosine(times * self.images) for times in (1, 2, 4))
        low, high = noise.cosine_range(self.images)
        sure = "" if _verdict(low) == _verdict(high) else "Uncertain, given this error: "
        return [
            f"Is the batch large enough? Gradients of two batches of {self.images} agree to "
            f"{now:.2f} (cosine; {low:.2f} to {high:.2f} with the error of "
            f"{count(len(self.measured), 'measurement')}); {2 * self.images} would agree to "
            f"{double:.2f}, {4 * self.images} to {fourfold:.2f}. {sure}{_verdict(now)}"
        ]


def _verdict(cosine: float) -> str:
    return next(words for most, words in _VERDICTS if cosine <= most)


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Restores buffers, such as BatchNorm statistics, and random states afterwards.

    Nothing is compiled inside: other batch sizes would replace what training has compiled.
    """
    saved = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with rng_preserved(device_of(module)), torch.compiler.set_stance("force_eager"):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in saved:
                    buffer.copy_(value)


def _gradient(trainer: Trainer, agent: Learner, batch: Batch) -> Tensor:
    """Returns the gradient of a batch over all processes, `(P,)`; no `.grad` is touched.

    It is scaled by the number of processes and the gradient scaler, which `compare` ignores.
    """
    parameters = [p for p in agent.trained_backbone.parameters() if p.requires_grad]
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    scale = scaler.get_scale() if scaler else 1.0  # float16 gradients would vanish
    with trainer.precision_plugin.train_step_context():
        loss = scale * agent.batch_loss(batch)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    (flat,) = at_least_float32(torch.cat([each.flatten() for each in found]))
    return sum_over_processes(flat)
