"""Stops at the first loss that is not finite, before it reaches the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite.

    Attributes:
        advice: options with which the run can go on.
    """

    advice = "--optim.lr LOWER"


class NonFiniteLoss(Callback):
    """Checks every training loss before it can change the weights, and every validation loss.

    Args:
        last_checkpoint: named in the message when it exists.
    """

    def __init__(self, last_checkpoint: Path) -> None:
        self.last_checkpoint = last_checkpoint
        self._losses: list[Tensor] = []

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Keeps the loss: reading it here would make the host wait for a GPU in every pass."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Checks the losses of this step.

        Raises:
            NonFiniteLossError: one is NaN or infinite; says step, learning rate, last checkpoint.
        """
        losses, self._losses = self._losses, []
        if losses:
            self._check(trainer, torch.stack(losses), "The loss")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Checks a validation loss: the step before may have broken the weights.

        Raises:
            NonFiniteLossError: see `on_before_optimizer_step`.
        """
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if trainer.optimizers and isinstance(loss, Tensor):  # else nothing is trained or judged
            self._check(trainer, loss, "The validation loss")

    def _check(self, trainer: Trainer, losses: Tensor, what: str) -> None:
        finite = bool(losses.isfinite().all())
        if trainer.world_size > 1:
            finite = trainer.strategy.reduce_boolean_decision(finite, all=True)
        if finite:
            return
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        good = (
            f"The last good checkpoint is {self.last_checkpoint}."
            if self.last_checkpoint.exists()
            else "There is no checkpoint yet."
        )
        broken = [value for value in losses.flatten().tolist() if not math.isfinite(value)]
        found = f"{what} is {broken[0]}" if broken else f"{what} of another process is not finite"
        raise NonFiniteLossError(
            f"{found} at step {trainer.global_step}, learning rate {lr:.3g}. "
            f"{good} Usual remedies: a lower --optim.lr, a longer --optim.warmup_epochs, "
            "--trainer.gradient_clip 1, or --trainer.precision 32-true."
        )
