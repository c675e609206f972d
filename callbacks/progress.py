"""Shows a run's progress: the parts it trains, how far it is, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import RichProgressBarTheme
from pytorch_lightning.utilities.model_summary import get_human_readable_count
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task
from rich.table import Table
from rich.text import Text
from torch import nn

from callbacks.epochs import epochs_of, steps_an_epoch
from callbacks.throughput import Throughput
from utils.console import console
from utils.logging import own_log
from utils.metrics_file import last_values

# Steps or seconds after which the pace is known; steps left for which it is worth saying.
_STEPS_OF_PACE, _SECONDS_OF_PACE, _WORTH_SAYING = 10, 60, 50


class Words(ProgressColumn):
    """A column of plain text.

    Args:
        words: returns the text for a task.
    """

    def __init__(self, words: Callable[[Task], str]) -> None:
        super().__init__()
        self.words = words

    def render(self, task: Task) -> Text:
        """Returns the text without markup."""
        return Text(self.words(task))


class ProgressBar(RichProgressBar):
    """Lightning's bar with epochs from 1 to n, the numbers that matter, and the time left.

    Args:
        watched: names of metrics whose last values are shown, once measured.
    """

    def __init__(self, watched: Collection[str] = ()) -> None:
        super().__init__(theme=RichProgressBarTheme(metrics_format=".4g"))
        self.watched = watched
        self.position = self.left = ""
        self._latest: dict[str, float] = {}
        self._started, self._first_step = 0.0, 0

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Returns epoch, bar, batches, time left; Lightning adds the numbers."""
        return [
            Words(lambda task: self.position if self._trains(task) else task.description),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            Words(lambda task: self.left if self._trains(task) else ""),
        ]

    def _trains(self, task: Task) -> bool:
        return task.id == self.train_progress_bar_id

    @property
    def total_train_batches(self) -> int | float:
        """Returns the batches of this epoch; Lightning's takes steps that are left for batches."""
        batches: int | float = self.trainer.num_training_batches
        if self.trainer.max_steps <= 0:
            return batches
        before = self.trainer.current_epoch * steps_an_epoch(self.trainer)
        left = self.trainer.max_steps - before
        return min(batches, left * self.trainer.accumulate_grad_batches)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Returns the metrics of the step, and the last values of the watched ones."""
        found: dict[str, Any] = {**super().get_metrics(trainer, pl_module), **self._latest}
        found.pop("v_num", None)
        return found

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, and the bar of a resumed run where that goes on."""
        super().on_train_start(trainer, pl_module)
        self._started, self._first_step = time.monotonic(), trainer.global_step
        if self._first_step and (log := own_log(trainer.loggers)):
            before = last_values(log.metrics.rows)
            self._latest = {name: before[name] for name in self.watched if name in before}
        if trainer.fit_loop.restarted_mid_epoch:
            self.on_train_epoch_start(trainer, pl_module)
            self._update(self.train_progress_bar_id, trainer.fit_loop.batch_idx + 1)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over what the last epoch and its readouts have measured."""
        self.position = f"Epoch {trainer.current_epoch + 1}/{epochs_of(trainer)}"
        self._look(trainer)
        super().on_train_epoch_start(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over what was measured."""
        self._look(trainer)
        super().on_validation_end(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *arguments: Any
    ) -> None:
        """Estimates the time left, including everything between the steps."""
        done = trainer.global_step - self._first_step
        if done and self.is_enabled:
            rest = trainer.estimated_stepping_batches - trainer.global_step
            seconds = (time.monotonic() - self._started) / done * rest
            self.left = f"{timedelta(seconds=round(seconds))} left"
        super().on_train_batch_end(trainer, pl_module, *arguments)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the last numbers: the readouts of the last epoch come after its bar."""
        self._look(trainer)
        super().on_train_epoch_end(trainer, pl_module)  # shows them
        super().on_train_end(trainer, pl_module)

    def _look(self, trainer: Trainer) -> None:
        for name in self.watched if self.is_enabled else ():
            if name in trainer.callback_metrics:
                self._latest[name] = float(trainer.callback_metrics[name])


class Pace(Callback):
    """Says once how long an epoch and the run will take, for logs without a progress bar.

    The first step does not count: it includes compiling, the search for fast algorithms, and
    features that are computed once.

    Args:
        throughput: times the steps.
    """

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput
        self._first_step = self._last_step = 0
        self._first_seconds = 0.0
        self._said = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the first step, which is not 0 in a resumed run."""
        self._first_step = self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *arguments: Any
    ) -> None:
        """Says it after ten more steps or a minute, unless the run is nearly over."""
        if trainer.global_step == self._last_step:  # batches are being accumulated
            return
        self._last_step = trainer.global_step
        done = trainer.global_step - self._first_step - 1
        rest = int(trainer.estimated_stepping_batches) - trainer.global_step
        if done == 0:
            self._first_seconds = self.throughput.seconds
        if self._said or done < 1:
            return
        seconds = self.throughput.seconds - self._first_seconds
        if done < _STEPS_OF_PACE and seconds <= _SECONDS_OF_PACE:
            return
        self._said = True
        if rest < _WORTH_SAYING or not trainer.is_global_zero:
            return
        step = seconds / done
        per_epoch = steps_an_epoch(trainer)
        epoch, run = (timedelta(seconds=round(step * n)) for n in (per_epoch, done + 1 + rest))
        since = f" from {self._first_step} on" if self._first_step else ""
        console.info(
            "%.2g s a step: %s an epoch, %s all steps%s; validations and readouts come on top.",
            *(step, epoch, run, since),
        )


class PartsTable(Callback):
    """Prints what is trained and what is frozen, before the first step.

    Args:
        parts: by name.
    """

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        self.parts = parts

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints it."""
        if trainer.is_global_zero:
            Console().print(parts_table(self.parts))


def parts_table(parts: Mapping[str, nn.Module]) -> Table:
    """Returns class, parameters and trained parameters of every part that has parameters."""
    table = Table("part", "class")
    for title in ("parameters", "trained"):
        table.add_column(title, justify="right")
    for name, part in parts.items():
        sizes = [(each.numel(), each.requires_grad) for each in part.parameters()]
        total, trained = sum(n for n, _ in sizes), sum(n for n, learns in sizes if learns)
        if total:
            share = "all" if trained == total else _count(trained) if trained else "frozen"
            table.add_row(Text(name), Text(type(part).__name__), _count(total), share)
    return table


def _count(number: int) -> str:
    return get_human_readable_count(number).strip()
