"""Hparams to a finished run: agent, data, callbacks, loggers → tune → fit → summary."""

from __future__ import annotations

import time
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_only

import agents.summary as summary
from agents.backbone import lay_out
from agents.base import Agent
from agents.build import build_agent, build_callbacks, build_data, build_loading, check_fits
from agents.chunks import resolve_chunk_size
from agents.fitting import End, Fitting
from agents.loggers import build_loggers
from agents.next_steps import Step, next_steps, resume_command
from agents.preflight import ImageCost, announce
from agents.resuming import check_continues
from agents.saving import (
    begin,
    checkpoint_to_resume,
    close,
    flush,
    forget_later_steps,
)
from agents.sources import build_source
from agents.tuning import tune_chunk_size, tune_lr
from callbacks.early_stopping import early_stopping
from callbacks.guard import Guard
from callbacks.interruption import Interruption
from callbacks.lost_process import LostProcess
from callbacks.non_finite_loss import NonFiniteLoss
from callbacks.progress import Pace, PartsTable, ProgressBar
from callbacks.random_state import RandomState
from callbacks.report import Report
from callbacks.step_numbers import StepNumbers
from callbacks.throughput import Throughput
from callbacks.unreadable_images import UnreadableImages
from config.convert import write_yaml
from config.hparams import Hparams
from config.length import resolve_for_data
from config.names import PRETRAINING
from config.resolve import resolve
from config.validation import active_settings, check
from datamodules.base import ImageDataModule
from datamodules.self_supervised import ViewsDataModule
from utils.checkpoint_io import RunCheckpoints
from utils.checkpoints import read_run_checkpoint
from utils.console import console, quiet_libraries
from utils.device import (
    best_device,
    check_accelerator,
    check_compiles,
    resolve_precision,
    use_own_gpu,
    use_tensor_cores,
)
from utils.logging import log_chart
from utils.memory import peak_mb, reset_peak
from utils.run_folder import RunFolder, create, folder_of_leader, named_run
from utils.stopwatch import Stopwatch

_EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 130}


class Trainer:
    """One run, from settings to summary.

    Args:
        hparams: settings; `run.resume` is `none` or the folder of the run to continue.
        experiment: what a run without a name is called after.
        tried_out: settings of the run that this one is a try-out of; None: it is none.

    Raises:
        ConfigError: settings that are impossible or have no effect.
    """

    def __init__(
        self,
        hparams: Hparams,
        experiment: str | None = None,
        tried_out: Hparams | None = None,
    ) -> None:
        self.given = check(hparams)  # a notebook's have not been
        self.tried_out = tried_out
        check_accelerator(hparams.trainer.accelerator)
        self.experiment = experiment
        self.hparams = resolve(self.given)
        options = self.hparams.trainer
        options.precision = resolve_precision(options.precision, options.accelerator)  # type: ignore[assignment]
        self.device = best_device(options.accelerator)
        if self.device.type == "cuda":
            use_own_gpu()
        if options.compile:
            check_compiles(self.device)
        self.checkpoint = checkpoint_to_resume(hparams.run.resume)
        self.resumed = self.checkpoint is not None
        # Of several processes the one that writes.
        self.leads = getattr(rank_zero_only, "rank", 0) == 0
        self.stopwatch = Stopwatch()

    def run(self) -> int:
        """Trains.

        Returns:
            Exit code: 0 finished, 1 failed, 130 interrupted and saved.
        """
        quiet_libraries()
        if use_tensor_cores(self.hparams.trainer.precision, self.device) and self.leads:
            console.info("float32 matrices are multiplied in TF32, beside half precision.")
        pl.seed_everything(self.hparams.run.seed, workers=True, verbose=False)
        source = build_source(self.hparams)
        data = self._list_images(build_data(self.hparams, source))
        agent = build_agent(self.hparams, source, loaded=not self.resumed)
        lay_out(agent, self.device)
        cost = ImageCost(agent, data, self.hparams)
        self.hparams.trainer.chunk_size = resolve_chunk_size(
            agent, data, self.hparams, self.device, cost
        )
        data.loading = build_loading(self.hparams)
        if self.leads:
            images, tried_out = len(data.train_files), self.tried_out is not None
            announce(self.given, self.hparams, agent, images, cost, tried_out)
        if self.checkpoint is not None:
            saved = read_run_checkpoint(self.checkpoint)
            check_continues(agent, data, self.hparams, self.checkpoint, saved)
            check_fits(agent, self.checkpoint, saved)
            del saved  # Lightning reads it again: as much memory as the network and its optimizer
        agent.prepare(data, self.hparams, self.device, self.checkpoint)
        self._check_stopping(data)
        folder = self._open_folder()
        with folder.held() if self.leads else nullcontext():
            if self.leads:
                begin(folder, self.resumed, self.hparams.trainer.accelerator)
            self._tune(agent, data)
            # A plain dict: a pickled dataclass could not be loaded with weights_only=True.
            agent.save_hyperparameters(active_settings(self.hparams))
            self._write_settings(folder)
            return self._fit(agent, data, folder)

    def _list_images(self, data: ImageDataModule) -> ImageDataModule:
        """Lists the images, and settles what depends on how many there are."""
        if self.leads:
            data.prepare_data()
        data.setup("fit")
        on_gpu = self.device.type == "cuda"
        self.hparams = resolve_for_data(self.hparams, len(data.train_files), on_gpu)
        data.loading = build_loading(self.hparams)
        data.check(Path(self.hparams.run.dir) / ".cache")
        return data

    def _check_stopping(self, data: ImageDataModule) -> None:
        if self.hparams.callbacks.early_stopping.enabled and not self._validates(data):
            raise ValueError("--callbacks.early_stopping needs validation images: none here.")

    def _open_folder(self) -> RunFolder:
        run = self.hparams.run
        if run.resume != "none":
            return RunFolder(Path(run.resume))
        if not self.leads:
            return folder_of_leader(run.dir, run.name)
        return create(run.dir, run.name, self.experiment)

    def _tune(self, agent: Agent, data: ImageDataModule) -> None:
        options = self.hparams.trainer
        if options.tune_batch_size:
            batch = int(self.hparams.data.batch_size)
            sizes = cast(ViewsDataModule, data).views.sizes
            chunk = tune_chunk_size(agent, self._lightning_trainer, batch, sizes, self.device)
            console.info("tune_batch_size: chunk_size %d", chunk)
            if options.compile and chunk < batch:
                console.info("trainer.compile: no effect, chunks are recomputed uncompiled.")
                options.compile = False
            # What was tried with the whole batch is the compiled pass, which knows no chunks.
            options.chunk_size = None if options.compile else chunk
            data.loading = build_loading(self.hparams)
        if options.tune_lr:
            lr = tune_lr(agent, data, self._lightning_trainer, self.device)
            agent.lr = self.hparams.optim.lr = lr
            console.info("tune_lr: learning rate %.3g", agent.lr)
        options.tune_batch_size = options.tune_lr = False

    def _write_settings(self, folder: RunFolder) -> None:
        if not self.leads:
            return
        saved = deepcopy(self.hparams)
        saved.run.name, saved.run.resume = None, "none"
        write_yaml(active_settings(saved), folder.hparams)

    def _lightning_trainer(self, **overrides: Any) -> pl.Trainer:
        options = self.hparams.trainer
        settings: dict[str, Any] = {
            "max_epochs": int(options.max_epochs) if options.max_steps is None else -1,
            "max_steps": -1 if options.max_steps is None else options.max_steps,
            "precision": options.precision,
            "accelerator": self.device.type,
            "devices": options.devices,
            "num_nodes": options.num_nodes,
            "strategy": options.strategy,
            "sync_batchnorm": options.sync_batchnorm,
            "accumulate_grad_batches": options.accumulate,
            "gradient_clip_val": options.gradient_clip or None,
            "limit_val_batches": options.limit_val_batches,
            "limit_test_batches": options.limit_test_batches,
            "check_val_every_n_epoch": int(options.val_every_n_epochs),
            # Convolutions are tried out for each size of images: a pretraining has few.
            "benchmark": self.hparams.task in PRETRAINING and not self.hparams.run.deterministic,
            # Bicubic interpolation has no deterministic gradient on CUDA: warn, do not stop.
            "deterministic": "warn" if self.hparams.run.deterministic else None,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": False,
            "use_distributed_sampler": False,
        }
        return pl.Trainer(**settings | overrides)

    def _fit(self, agent: Agent, data: ImageDataModule, folder: RunFolder) -> int:
        guard = Guard(self.device, self.stopwatch)
        callbacks = build_callbacks(self.hparams, guard)
        goals = summary.goals(agent, callbacks)
        transductive = data.transductive or _weights_are_transductive(self.hparams)
        loggers = build_loggers(self.hparams, folder, goals, transductive) if self.leads else []
        if self.checkpoint is not None:
            forget_later_steps(loggers, self.checkpoint)
        observed = summary.Observed(Throughput(self.stopwatch), UnreadableImages(), self.stopwatch)
        report = self.hparams.callbacks.report.enabled and self.leads
        reports = [guard.around("report", Report(folder))] if report else []
        trainer = self._lightning_trainer(
            logger=loggers,
            callbacks=[
                observed.throughput,
                observed.unreadable,
                *self._safeguards(folder),
                *callbacks,
                *reports,
                *self._choosing(agent, data, folder),
                PartsTable(agent.parts),
                Pace(observed.throughput),
                ProgressBar(goals),
            ],
            plugins=[RunCheckpoints(folder, partial(flush, loggers))],
            **({} if self._validates(data) else {"limit_val_batches": 0}),
            enable_checkpointing=True,
            enable_progress_bar=True,
            default_root_dir=folder.path,
        )
        reset_peak(self.device)
        fitting = Fitting(trainer, agent, data, folder, self.checkpoint, self.stopwatch)
        started, end = time.perf_counter(), End("failed")
        try:
            end = fitting.run()
        except BaseException as error:
            end = End("failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            result = summary.collect(trainer, fitting.metrics, observed, end) | {
                **agent.facts,
                **summary.of_callbacks(callbacks),
                **summary.by_readout(guard.seconds),
                "transductive": transductive,
                "peak_memory_mb": round(peak_mb(self.device)),
                "wall_seconds": round(time.perf_counter() - started, 1),
            }
            table = summary.before_and_now(callbacks, result)
            guard.attempt("readouts", partial(log_chart, trainer, "readouts", table))
            if self.leads:
                in_words = partial(summary.in_words, agent, callbacks, result)
                result["in_words"] = guard.attempt("closing words", in_words) or []
            logged = set(fitting.metrics)
            hints, recorded = close(folder, result, loggers, reports, guard, logged)
        if self.leads:
            words = [*result["in_words"], *guard.in_words()]
            summary.show(folder, self.hparams, words, result, hints, self._next(folder, data, end))
        return _EXIT_CODES[end.status] if recorded else _EXIT_CODES["failed"]

    def _safeguards(self, folder: RunFolder) -> list[pl.Callback]:
        """Returns what lets a run end well, and go on exactly."""
        return [
            LostProcess(folder),
            NonFiniteLoss(folder.last),
            Interruption(folder.last),
            RandomState(self.hparams.run.seed, self.device),
            StepNumbers(),
        ]

    def _next(self, folder: RunFolder, data: ImageDataModule, end: End) -> list[Step]:
        if end.status == "finished":
            return next_steps(folder, self.given, self.hparams, data.source, self.tried_out)
        return [Step("go on", resume_command(folder, self.given, end.advice))]

    def _choosing(
        self, agent: Agent, data: ImageDataModule, folder: RunFolder
    ) -> list[pl.Callback]:
        """Returns what keeps the best and the last checkpoint, and what stops early."""
        common: dict[str, Any] = {"dirpath": folder.checkpoints, "enable_version_counter": False}
        last = ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **common)
        stopping = self.hparams.callbacks.early_stopping
        choice = agent.monitor
        if choice is None or not self._validates(data):
            return [last]
        monitor, mode = choice
        # When the last one is written, and so the same file where this epoch is the best.
        best = ModelCheckpoint(
            filename="best", monitor=monitor, mode=mode, save_on_train_epoch_end=True, **common
        )
        stop = [early_stopping(monitor, mode, stopping.patience)] if stopping.enabled else []
        return [best, last, *stop]

    def _validates(self, data: ImageDataModule) -> bool:
        return self.hparams.trainer.limit_val_batches != 0 and data.validates


def _weights_are_transductive(hparams: Hparams) -> bool:
    run = named_run(hparams.backbone.weights, hparams.run.dir)
    return run is not None and bool(run.read_summary().get("transductive"))
