"""Numbers that say what a backbone has learnt, beside what it had before the first step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from callbacks.inspection import SayOnce, backbone_of, data_of, due
from datamodules.base import ImageDataModule
from utils.logging import log_after_step, log_scalars


class Readout(Callback, ABC):
    """Measures the kept backbone without touching the training.

    A number says little without what the same network had before it learnt anything, so that is
    measured as well and kept, as long as the same is measured.

    Args:
        every_n_epochs: when to measure; a frozen backbone is measured once, before the first step.

    Attributes:
        before: what was measured before the first step, by name.
        now: what was measured last.
        headlines: what the closing words call the numbers they show, by name; larger is better.
    """

    headlines: Mapping[str, str] = {}

    def __init__(self, every_n_epochs: int) -> None:
        self.every_n_epochs = every_n_epochs
        self.before: dict[str, float] = {}
        self.now: Mapping[str, float] = {}
        self.say = SayOnce()
        self._facts: dict[str, Any] = {}

    def facts(self, data: ImageDataModule) -> dict[str, Any]:
        """Returns what its numbers follow from beside the network: plain values by setting."""
        return {"data.image_size": data.image_size}

    @abstractmethod
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> Mapping[str, float]:
        """Returns the numbers by the name they are logged under; none where it has none to give."""

    def reading(self) -> dict[str, float]:
        """Returns its headlines, `NAME/before` the first step and `NAME/now`, for `Health`."""
        both = self.headlines.keys() & self.before.keys() & self.now.keys()
        before = {f"{name}/before": self.before[name] for name in both}
        return before | {f"{name}/now": self.now[name] for name in both}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Looks at what is measured, which a checkpoint's state has to have been measured of."""
        self._facts = self.facts(data_of(trainer))

    def state_dict(self) -> dict[str, Any]:
        """What was measured before the first step, and last, and what of."""
        return {"before": self.before, "now": dict(self.now), "facts": self._facts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it, unless something else is measured now, with which it does not compare."""
        facts = state_dict.get("facts", {})  # earlier versions kept none
        changed = [name for name, value in self._facts.items() if facts.get(name, value) != value]
        if not changed:
            self.restore(state_dict)
        elif before := state_dict.get("before"):
            self.say(
                f"{next(iter(before))} of before does not compare with what comes, with another "
                f"--{', --'.join(changed)}: it is forgotten."
            )

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over what was measured of the same."""
        self.before, self.now = state.get("before", {}), state.get("now", {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures what there is before the first step; when a run goes on, that is kept.

        Of a frozen backbone it is there all the time, also for what is switched on later.
        """
        if trainer.global_step == 0 or (backbone_of(pl_module).frozen and not self.before):
            self.before = dict(self.measure(trainer, pl_module))
            log_scalars(trainer, self.before)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures."""
        if due(trainer, self.every_n_epochs):
            frozen = backbone_of(pl_module).frozen
            self.now = self.before if frozen else self.measure(trainer, pl_module)
            pl_module.log_dict(dict(self.now), logger=False)
            # Before the epoch's checkpoint, after which no resumed run measures it again.
            log_after_step(trainer, self.now)
