"""Wraps every callback that only observes, and every logger, so that none of them ends a run."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
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
# Methods by which Lightning, callbacks and the end of a run use a logger.
_LOGGER_METHODS = (
    *("log_hyperparams", "log_graph", "log_metrics", "save", "after_save_checkpoint", "finalize"),
    *("log_figure", "log_masks", "log_chart", "log_histograms", "attach"),
)


class Guard:
    """Lets callbacks and loggers fail without the run: each failure is counted, training goes on.

    A warning is given once per kind of failure. Observing leaves no trace in the run: random states
    are restored, and the memory of a failed attempt is freed. Callbacks that steer a run
    (checkpoints, early stopping, the stop at a loss that is not finite) are not wrapped. Ctrl-C and
    `SystemExit` pass.

    Args:
        device: trains the run; its random state and memory are restored.
        stopwatch: counts the time of each, as `readouts/NAME`.

    Attributes:
        failures: how often each failed, by name.
    """

    def __init__(self, device: torch.device = CPU, stopwatch: Stopwatch | None = None) -> None:
        self.device = device
        self._stopwatch = stopwatch or Stopwatch()
        self.failures: Counter[str] = Counter()
        self._reasons: dict[tuple[str, str], str] = {}  # by name and kind of error
        self._lost: set[str] = set()  # loggers

    def around(self, name: str, callback: AnyCallback) -> AnyCallback:
        """Returns the callback with all its hooks wrapped.

        Only `setup` may still refuse a setting, with a `ValueError` before the first step.

        Args:
            name: for messages.
            callback: changed in place.
        """
        for hook in _HOOKS:
            if is_overridden(hook, callback, Callback):
                passes = (ValueError,) if hook == "setup" else ()
                act = getattr(callback, hook)
                setattr(callback, hook, partial(self._attempt, name, passes, act))
        return callback

    def around_logger(self, name: str, logger: AnyLogger) -> AnyLogger:
        """Returns the logger with all its methods wrapped.

        After an `OSError` (connection or disk lost) it is no longer called.

        Args:
            name: for messages.
            logger: changed in place.
        """
        for method in _LOGGER_METHODS:
            if tell := getattr(logger, method, None):
                setattr(logger, method, partial(self._tell, name, tell))
        return logger

    def attempt(self, name: str, act: Callable[[], Any]) -> Any:
        """Returns what `act` returns, None when it fails."""
        return self._attempt(name, (), act)

    def in_words(self) -> list[str]:
        """Says what failed, in one line; nothing if nothing did."""
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
            with self._stopwatch.timing(f"readouts/{name}"), rng_preserved(self.device):
                return act(*arguments, **named)
        except passes:
            raise
        except Exception as error:  # whatever it is, hours of training are worth more
            self._note(name, error)
            starved = is_out_of_memory(error)
        close_all()
        if starved:
            # Only after the error is gone: its traceback holds the tensors of the attempt.
            free_unused(self.device)
        return None

    def _tell(self, name: str, tell: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        # Called after every step, so without the costly care for a readout.
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
