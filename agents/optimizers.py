"""From the `optim` settings to an optimizer and its schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from pytorch_lightning import LightningModule
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from config import names
from config.hparams import OptimHparams
from utils.optim import decays, parameter_groups


def configure(
    agent: LightningModule, modules: Mapping[nn.Module, float], optim: OptimHparams, lr: float
) -> dict[str, Any]:
    """Builds what `configure_optimizers` returns.

    Args:
        agent: its trainer knows the length of the run.
        modules: whose trainable parameters are optimised, and how many times `lr` theirs is.
        optim: settings.
        lr: peak learning rate, which the tuner may have found.
    """
    part = names.OPTIMIZERS[optim.name]
    groups = parameter_groups(modules, lr, float(optim.weight_decay))
    optimizer = part.load()(groups, **{leaf: getattr(optim, leaf) for leaf in part.settings})
    trainer = agent.trainer
    trainer.fit_loop.setup_data()
    per_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
    total = int(trainer.estimated_stepping_batches)
    warmup = min(math.ceil(optim.warmup_epochs * per_epoch), total)
    schedule = names.SCHEDULES[optim.schedule]
    settings: dict[str, Any] = {"total": total, "warmup": warmup}
    if "final_lr_ratio" in schedule.settings:
        settings["final"] = optim.final_lr_ratio
    scheduler = LambdaLR(optimizer, partial(schedule.load(), **settings))
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"},
    }


def set_weight_decay(optimizer: Optimizer, value: float) -> None:
    """Sets the weight decay of the parameters that have one."""
    for group in optimizer.param_groups:
        if decays(group["params"][0]):
            group["weight_decay"] = value
