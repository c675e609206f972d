"""Trains, tests and saves an agent, and records how that ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.model_helpers import is_overridden

from agents.backbone import save_backbone
from agents.base import Agent
from agents.chunks import too_large
from agents.lightning import loaders_of, stop_loading
from agents.preflight import images_a_process
from callbacks.interruption import Interrupted
from callbacks.non_finite_loss import NonFiniteLossError
from config.rules import unmet
from datamodules.base import ImageDataModule
from datamodules.workers import WorkerKilledError
from utils.gpu_errors import gpu_failure
from utils.memory import held_by_others, is_out_of_memory, peak_mb, reset_peak
from utils.run_checkpoints import best_or_last
from utils.run_folder import RunFolder
from utils.stopwatch import Stopwatch
from utils.text import one_line

_QUIET: dict[str, Any] = {"weights_only": True, "verbose": False}


class End(NamedTuple):
    """How training ended: `finished`, `failed` or `interrupted`, why, and options to go on with."""

    status: str
    reason: str | None = None
    advice: str = ""


@dataclass
class Fitting:
    """Training and test of one agent.

    Args:
        trainer: Lightning's; one without validation has `limit_val_batches` 0.
        agent: what is trained.
        data: loads its images.
        folder: of the run.
        checkpoint: to resume from.
        stopwatch: takes the time of `fitting`, `test` and what lies between.
        device: trains the agent.

    Attributes:
        end: how it ended.
        peak_mb: peak memory.
        trained: whether training is done and saved.
    """

    trainer: pl.Trainer
    agent: Agent
    data: ImageDataModule
    folder: RunFolder
    checkpoint: Path | None
    stopwatch: Stopwatch
    device: torch.device
    end: End = field(default=End("failed"), init=False)
    peak_mb: float = field(default=0.0, init=False)
    trained: bool = field(default=False, init=False)

    def run(self) -> None:
        """Trains and tests, and records end, time and memory, whatever happens.

        Raises:
            Exception: unexpected, so that there is no advice.
        """
        reset_peak(self.device)
        try:
            with self.stopwatch.timing("between"):  # fitting and test
                self.end = self._run()
        except BaseException as error:
            self.end = End("failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            stop_loading(self.trainer)
            self.peak_mb = peak_mb(self.device)

    def _run(self) -> End:
        try:
            self._fit()
            self._test()
        except Interrupted as interruption:
            return End("interrupted", str(interruption))
        except (SystemExit, KeyboardInterrupt):
            # From Lightning on a second Ctrl-C or on one during the test, from a Ctrl-C between
            # training and test, or from `stopping_at_once`, in which the trainer runs this.
            return End("interrupted", "stopped at once")
        except (NonFiniteLossError, WorkerKilledError) as error:
            return End("failed", str(error), error.advice)
        except (OSError, RuntimeError, EOFError, MemoryError) as error:
            # Any of these may follow from a killed worker: torch raises it in the middle of other
            # work, or finds the connection closed.
            if killed := self._killed_worker():
                return End("failed", str(killed), killed.advice)
            if isinstance(error, OSError):
                return End("failed", str(error))
            if is_out_of_memory(error):
                return self._exhausted(error)
            if failure := gpu_failure(error):
                return End("failed", failure)
            raise
        return End("finished")

    def _fit(self) -> None:
        trainer, agent, resume = self.trainer, self.agent, self.checkpoint
        if agent.trains:
            with self.stopwatch.timing("fitting"):
                trainer.fit(agent, datamodule=self.data, ckpt_path=resume, weights_only=True)
            stop_loading(self.trainer)  # the test has its own
            if trainer.is_global_zero:
                save_backbone(agent.backbone, self.folder)
            self.trained = True
        elif agent.validates_untrained and trainer.limit_val_batches:
            with self.stopwatch.timing("fitting"):  # without steps, all of it counts as validation
                trainer.validate(agent, ckpt_path=resume, datamodule=self.data, **_QUIET)

    def _test(self) -> None:
        trains = self.agent.trains
        if is_overridden("test_step", self.agent):
            chosen = best_or_last(self.folder) if trains else self.checkpoint
            with self.stopwatch.timing("test"):
                self.trainer.test(self.agent, ckpt_path=chosen, datamodule=self.data, **_QUIET)
        if not trains:  # what was tested, for --evaluate and --predict
            self.trainer.save_checkpoint(self.folder.last, weights_only=True)

    def _exhausted(self, error: BaseException) -> End:
        """Says what to do if a step, or the test, does not fit into memory."""
        hparams, reason = self.agent.settings, one_line(str(error), 200)
        words = f"Memory is exhausted ({reason}).{held_by_others(self.device)}"
        if self.trained:
            words += " Training is done and saved; what is left is the test."
            if hparams.task == "segmentation":
                less = "a smaller --segmentation.test_window or smaller --segmentation.test_scales"
                words += f" It needs less with {less}."
            return End("failed", words)
        if unmet(hparams, "trainer.chunk_size") is not None:
            return End("failed", f"{words} A new run needs a smaller --data.batch_size.")
        whole, chunk = images_a_process(hparams), hparams.trainer.chunk_size
        largest = min(chunk, whole) if isinstance(chunk, int) else whole
        smaller = max(2, largest // 2)
        held, peak = self.agent.held_by_loss(whole, smaller), peak_mb(self.device) * 2**20
        if 0 < peak < 2 * held:  # mostly memory that chunks cannot save
            return End("failed", f"{words} {too_large(self.agent, held)}")
        if largest <= 2:  # there is no smaller one
            need = "A new run needs a smaller backbone or --data.image_size."
            return End("failed", f"{words} {need}")
        uncompiled = " --trainer.compile false" if hparams.trainer.compile else ""
        return End("failed", words, f"--trainer.chunk_size {smaller}{uncompiled}")

    def _killed_worker(self) -> WorkerKilledError | None:
        found = (loader.workers.killed() for loader in loaders_of(self.trainer))
        return next((error for error in found if error), None)
