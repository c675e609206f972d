"""Is my batch large enough? How far the gradients of two batches agree."""

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

# The newest measurements are averaged: signal and noise change while a network learns.
WINDOW = 20
# With fewer, their own error is not known well enough for an alarm.
FEWEST_FOR_ALARM = 5
# Up to which predicted cosine which words hold. At 0.5 the batch is the simple noise scale.
_VERDICTS = (
    (0.2, "Mostly noise: a larger --data.batch_size gives better steps, and fewer of them an epoch "
     "(--trainer.chunk_size keeps the memory)."),
    (0.5, "More noise than signal: a larger --data.batch_size still gives better, fewer steps."),
    (0.8, "More signal than noise: a larger batch gives somewhat better steps."),
    (1.0, "Yes: a larger batch would give nearly the same steps."),
)  # fmt: skip


class GradientAgreement(Callback):
    """Logs how far the gradients of two batches agree, and what follows for the batch.

    `train/gradient_cosine`: between a batch and the one before it, by the weights of one step, with
    respect to the parameters of the backbone that is trained. `train/gradient_cosine_batch`: of two
    batches of a step, gradients accumulated over several batches included, and
    `train/gradient_noise_scale`: the batch, in images, in which noise is half; both of the newest
    measurements together. A small cosine late in a run is no fault of the batch by itself: near an
    optimum nothing but noise is left.

    Each measurement passes both batches once more, forwards and backwards, before a step, and
    leaves gradients, BatchNorm statistics and random states as they were. Of several processes a
    batch is what all of them have: gradients are averaged over them.

    Args:
        every_n_steps: when to measure. The first step of an epoch has no batch before it: then the
            next one is measured. Nor has the first of a run that goes on within an epoch, as a
            checkpoint that kept it would be larger by the images of a batch: what was due at that
            step is measured one later than without the interruption.

    Attributes:
        images: of an optimizer step.
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
        """What was measured."""
        measured = [list(each) for each in self.measured]
        return {"images": self.images, "pairs": measured, "last_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it; what compared halves of batches, as once, is no measure of whole ones."""
        if "pairs" in state_dict:
            self.images, self._last_step = state_dict["images"], state_dict["last_step"]
            self.measured.extend(GradientPair(*each) for each in state_dict["pairs"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says so where there is nothing to compare."""
        if trainer.num_training_batches == 1:
            self.say(
                "gradient_agreement: an epoch of one batch has no second one to compare it with: "
                "nothing is measured."
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the last batch of the epoch before, which may have images of the first."""
        self._before = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measures; of batches whose gradients are accumulated, on the first there can be."""
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
        """Returns the numbers by name; none of gradients that are no finite numbers.

        Args:
            trainer: of the run.
            pl_module: what is trained.
            before: images that `batch` has none of, as many.
            batch: of this step.

        Raises:
            TypeError: the agent is no `Learner`.
        """
        if not isinstance(pl_module, Learner):
            raise TypeError(f"{type(pl_module).__name__} is no agent that is pretrained on views.")
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
        """Returns what an alarm looks at, once there is enough of it."""
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
        sure = "" if _verdict(low) == _verdict(high) else "As far as so few measurements tell: "
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
    """Buffers, such as BatchNorm statistics, and random states are as before afterwards.

    Nothing is compiled for what passes meanwhile: other sizes of a batch would take the place of
    what the training has compiled.
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

    Times the processes and a scaler's factor, of which `compare` takes no notice.
    """
    parameters = [p for p in agent.trained_backbone.parameters() if p.requires_grad]
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    scale = scaler.get_scale() if scaler else 1.0  # float16 gradients would vanish
    with trainer.precision_plugin.train_step_context():
        loss = scale * agent.batch_loss(batch)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    (flat,) = at_least_float32(torch.cat([each.flatten() for each in found]))
    return sum_over_processes(flat)
