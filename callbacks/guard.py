"""No readout ends a run: what stands around every callback that only looks, and every logger."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from pytorch_lightning import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.model_helpers import is_overridden

from utils.figures import close_all
from utils.memory import free_unused, is_out_of_memory
from utils.rng import CPU, rng_preserved
from utils.stopwatch import Stopwatch

AnyCallback = TypeVar("AnyCallback", bound=Callback)
AnyLogger = TypeVar("AnyLogger", bound=Logger)

_HOOKS = [
    name for name, _ in inspect.getmembers(Callback, inspect.isfunction) if not name.startswith("_")
]
# What Lightning, callbacks and the end of a run tell a logger.
_TOLD = (
    *("log_hyperparams", "log_graph", "log_metrics", "save", "after_save_checkpoint", "finalize"),
    *("log_figure", "log_masks", "log_chart", "log_histograms", "attach"),
)


class Guard:
    """Lets callbacks and loggers fail without the run: said once, counted, and training goes on.

    For callbacks that only look. A run is as if nothing had been looked at: random states are put
    back, and what a failed attempt held is freed. What steers a run (checkpoints, early stopping,
    the stop at a loss that is no number) stays outside. Ctrl-C and `SystemExit` pass.

    Args:
        device: that trains, whose randomness and memory are looked after.
        stopwatch: counts the time they take, as `readouts`.

    Attributes:
        failures: how often each failed, by its name.
        seconds: that each took, by its name.
    """

    def __init__(self, device: torch.device = CPU, stopwatch: Stopwatch | None = None) -> None:
        self.device = device
        self._stopwatch = stopwatch or Stopwatch()
        self._each = Stopwatch()
        self.seconds: Mapping[str, float] = self._each.seconds
        self.failures: Counter[str] = Counter()
        self._reasons: dict[tuple[str, str], str] = {}  # by name and kind of error
        self._lost: set[str] = set()  # loggers

    def around(self, name: str, callback: AnyCallback) -> AnyCallback:
        """Returns the callback, all of whose hooks may fail from now on.

        Only `setup` may still refuse a setting, with a `ValueError` before the first step.

        Args:
            name: by which a user knows it.
            callback: changed in place.
        """
        for hook in _HOOKS:
            if is_overridden(hook, callback, Callback):
                passes = (ValueError,) if hook == "setup" else ()
                act = getattr(callback, hook)
                setattr(callback, hook, partial(self._attempt, name, passes, act))
        return callback

    def around_logger(self, name: str, logger: AnyLogger) -> AnyLogger:
        """Returns the logger, which may fail from now on whatever it is told.

        One that loses its connection or its disk does not get it back, and is told no more.

        Args:
            name: by which a user knows it.
            logger: changed in place.
        """
        for method in _TOLD:
            if tell := getattr(logger, method, None):
                setattr(logger, method, partial(self._tell, name, tell))
        return logger

    def attempt(self, name: str, act: Callable[[], Any]) -> Any:
        """Returns what `act` returns, None when it fails."""
        return self._attempt(name, (), act)

    def in_words(self) -> list[str]:
        """Says what failed, in one line; nothing where nothing did."""
        if not self.failures:
            return []
        first = {name: reason for (name, _), reason in reversed(self._reasons.items())}
        each = (f"{name} {count}x ({first[name]})" for name, count in self.failures.items())
        return [f"Failed, though training does not depend on it: {'; '.join(each)}."]

    def _attempt(
        self,
        name: str,
        passes: tuple[type[Exception], ...],
        act: Callable[..., Any],
        *arguments: Any,
        **named: Any,
    ) -> Any:
        try:
            with (
                self._stopwatch.timing("readouts"),
                self._each.timing(name),
                rng_preserved(self.device),
            ):
                return act(*arguments, **named)
        except passes:
            raise
        except Exception as error:  # whatever it is, hours of training are worth more
            self._note(name, error)
            starved = is_out_of_memory(error)
        close_all()
        if starved:
            # Not before the error is forgotten: its traceback holds the tensors of the attempt.
            free_unused(self.device)
        return None

    def _tell(self, name: str, tell: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        # After every step: without the care that a readout needs.
        if name in self._lost:
            return
        try:
            tell(*arguments, **named)
        except Exception as error:
            self._note(name, error)
            if isinstance(error, OSError):
                self._lost.add(name)

    def _note(self, name: str, error: Exception) -> None:
        self.failures[name] += 1
        kind = type(error).__name__
        if (name, kind) not in self._reasons:
            words = " ".join(str(error).split()).rstrip(".")
            self._reasons[name, kind] = f"{kind}: {words}" if words else kind
            rank_zero_warn(f"{name} failed, training goes on: {self._reasons[name, kind]}.")
