"""From the `optim` settings to an optimizer and its schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from callbacks.progress import steps_an_epoch
from config import names
from config.hparams import Hparams
from config.rules import settings_of
from utils.imports import load
from utils.optim import parameter_groups


def configure(
    agent: LightningModule, modules: Mapping[nn.Module, float], hparams: Hparams, lr: float
) -> dict[str, Any]:
    """Builds what `configure_optimizers` returns.

    Args:
        agent: its trainer knows the length of the run.
        modules: whose trainable parameters are optimised, and how many times `lr` theirs is.
        hparams: resolved settings.
        lr: peak learning rate, which the tuner may have found.
    """
    optim = hparams.optim
    groups = parameter_groups(modules, lr, float(optim.weight_decay))
    make_optimizer = load(names.OPTIMIZERS[optim.name])
    optimizer = make_optimizer(groups, **settings_of(hparams, "optim.name"))
    optimizer.register_load_state_dict_pre_hook(keep_own_settings)
    trainer = agent.trainer
    trainer.fit_loop.setup_data()
    total = int(trainer.estimated_stepping_batches)
    warmup = min(math.ceil(float(optim.warmup_epochs) * steps_an_epoch(trainer)), total)
    factor = partial(
        load(names.SCHEDULES[optim.schedule]),
        total=total,
        warmup=warmup,
        **settings_of(hparams, "optim.schedule"),
    )
    scheduler = StepSchedule(optimizer, factor)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"},
    }


def keep_own_settings(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """Gives a saved state the rates, decay and momentum that the optimizer was made with.

    To be registered as a hook before loading: what then comes from the checkpoint is the memory of
    each parameter alone, laid out as the parameter is (channels first or last, by the device).

    Raises:
        ValueError: its groups are of other sizes.
    """
    here, there = (
        [len(group["params"]) for group in groups]
        for groups in (optimizer.param_groups, state["param_groups"])
    )
    if here != there:
        raise ValueError(
            f"The checkpoint's optimizer remembers {_in_words(there)} parameters, and with these "
            f"settings and this version they are {_in_words(here)}: what is trained, or what of it "
            "decays, has changed since. Go on with the version that environment.json names, or "
            "start a new run from the weights: --backbone.weights CHECKPOINT."
        )
    pairs = zip(optimizer.param_groups, state["param_groups"], strict=True)
    groups = [{**own, "params": saved["params"]} for own, saved in pairs]
    parameters = (each for group in optimizer.param_groups for each in group["params"])
    numbers = (number for group in groups for number in group["params"])
    memory = dict(state["state"])
    for number, parameter in zip(numbers, parameters, strict=True):
        if number in memory:
            memory[number] = {k: _like(parameter, v) for k, v in memory[number].items()}
    return {**state, "state": memory, "param_groups": groups}


def _like(parameter: Tensor, value: Any) -> Any:
    """Returns what is of a parameter's shape in the parameter's order: fused steps want one."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    laid = torch.empty_strided(value.shape, parameter.stride(), dtype=value.dtype)
    return value if value.stride() == parameter.stride() else laid.copy_(value)


def _in_words(sizes: Sequence[int]) -> str:
    return " + ".join(map(str, sizes))


class StepSchedule(LambdaLR):
    """Learning rates as a function of the step alone: peak times a factor.

    A checkpoint says at which step it stands; peak and factor stay those it was made with.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes to the step of a checkpoint, and sets the rates of that step."""
        step, peaks = state_dict["last_epoch"], self.base_lrs
        rates = [peak * f(step) for peak, f in zip(peaks, self.lr_lambdas, strict=True)]
        own = {"base_lrs": peaks, "lr_lambdas": [None] * len(peaks), "_last_lr": rates}
        super().load_state_dict({**state_dict, **own})
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def set_weight_decay(optimizer: Optimizer, value: float) -> None:
    """Sets the weight decay of the parameters that have one."""
    for group in optimizer.param_groups:
        if group["decays"]:
            group["weight_decay"] = value
