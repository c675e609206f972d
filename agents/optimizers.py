"""Builds the optimizer and its schedule from the `optim` settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from agents.base import Agent
from callbacks.epochs import steps_an_epoch
from config import names
from config.rules import settings_of
from utils.imports import load
from utils.optim import parameter_groups


def configure(agent: Agent, modules: Mapping[nn.Module, float]) -> dict[str, Any]:
    """Builds what `configure_optimizers` returns.

    Args:
        agent: has the settings; its trainer knows the length of the run.
        modules: to optimise, unless frozen, each with a factor on the learning rate.
    """
    hparams, optim = agent.settings, agent.settings.optim
    groups = parameter_groups(modules, agent.lr, float(optim.weight_decay))
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
    """Replaces learning rates, decay and momentum of a saved state by the optimizer's own.

    A hook to register before loading: the checkpoint then gives only the state of each parameter,
    in the memory layout of the parameter (channels first or last, by device).

    Raises:
        ValueError: the saved parameter groups have other sizes.
    """
    here, there = (
        [len(group["params"]) for group in groups]
        for groups in (optimizer.param_groups, state["param_groups"])
    )
    if here != there:
        raise ValueError(
            f"The checkpoint's optimizer remembers {_in_words(there)} parameters, but these "
            f"settings and this version have {_in_words(here)}: what is trained, or which of it "
            "has weight decay, has changed. Go on with the version that environment.json names, or "
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
    """Returns a state tensor in its parameter's memory layout, which fused optimizers require."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    laid = torch.empty_strided(value.shape, parameter.stride(), dtype=value.dtype)
    return value if value.stride() == parameter.stride() else laid.copy_(value)


def _in_words(sizes: Sequence[int]) -> str:
    return " + ".join(map(str, sizes))


class StepSchedule(LambdaLR):
    """Learning rates as a function of the step alone: peak times a factor.

    A checkpoint restores the step only; peak and factor stay those of the settings.
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
