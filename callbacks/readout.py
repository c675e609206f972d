"""Numbers that say what a backbone has learnt, compared with those before the first step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from callbacks.epochs import due
from callbacks.inspection import SayOnce, backbone_of, data_of
from datamodules.base import ImageDataModule
from utils.logging import log_after_step, log_scalars


class Readout(Callback, ABC):
    """Measures the saved backbone without affecting training.

    A number says little without its value before training. So that is measured as well, and kept
    until settings change what is measured.

    Args:
        every_n_epochs: when to measure; a frozen backbone is measured once, before the first step.

    Attributes:
        before: values before the first step, by name.
        now: the last values.
        headlines: names and titles of the numbers in the closing words; larger is better.
    """

    headlines: Mapping[str, str] = {}

    def __init__(self, every_n_epochs: int) -> None:
        self.every_n_epochs = every_n_epochs
        self.before: dict[str, float] = {}
        self.now: Mapping[str, float] = {}
        self.say = SayOnce()
        self._facts: dict[str, Any] = {}

    def facts(self, data: ImageDataModule) -> dict[str, Any]:
        """Returns what its numbers depend on besides the network: plain values by setting."""
        return {"data.image_size": data.image_size}

    @abstractmethod
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> Mapping[str, float]:
        """Returns the numbers by the name they are logged under; none if it cannot measure."""

    def reading(self) -> dict[str, float]:
        """Returns its headlines as `NAME/before` (the first step) and `NAME/now`, for `Health`."""
        both = self.headlines.keys() & self.before.keys() & self.now.keys()
        before = {f"{name}/before": self.before[name] for name in both}
        return before | {f"{name}/now": self.now[name] for name in both}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Notes what the numbers depend on, to compare it with a checkpoint's."""
        self._facts = self.facts(data_of(trainer))

    def state_dict(self) -> dict[str, Any]:
        """The values before the first step, the last ones, and what they depend on."""
        return {"before": self.before, "now": dict(self.now), "facts": self._facts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them, unless changed settings make them incomparable."""
        facts = state_dict.get("facts", {})  # earlier versions saved none
        changed = [name for name, value in self._facts.items() if facts.get(name, value) != value]
        if not changed:
            self.restore(state_dict)
        elif before := state_dict.get("before"):
            self.say(
                f"Earlier values of {next(iter(before))} do not compare with later ones, with "
                f"another --{', --'.join(changed)}: they are forgotten."
            )

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over the values of a checkpoint."""
        self.before, self.now = state.get("before", {}), state.get("now", {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures before the first step; a resumed run keeps those values.

        A frozen backbone never changes, so it is also measured if the readout is switched on later.
        """
        if trainer.global_step == 0 or (backbone_of(pl_module).frozen and not self.before):
            self.before = dict(self.measure(trainer, pl_module))
            log_scalars(trainer, self.before)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures if it is due."""
        if due(trainer, self.every_n_epochs):
            frozen = backbone_of(pl_module).frozen
            self.now = self.before if frozen else self.measure(trainer, pl_module)
            pl_module.log_dict(dict(self.now), logger=False)
            # Before the epoch's checkpoint: a run resumed from it does not measure again.
            log_after_step(trainer, self.now)
