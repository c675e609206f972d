"""Hparams to a finished run: agent, data, callbacks, loggers → tune → fit → summary."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import cast

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only

from agents.backbone import choose_attention, lay_out
from agents.base import Agent
from agents.build import build_agent, build_callbacks, build_data, build_loading
from agents.checkpoint_check import check_best, check_fits
from agents.chunks import common_chunk_size, resolve_chunk_size
from agents.closing import close, show
from agents.fitting import End, Fitting
from agents.images_seen import is_transductive
from agents.lightning import lightning_trainer
from agents.loggers import build_loggers
from agents.next_steps import Step, next_steps, resume_command
from agents.observers import Observers
from agents.preflight import ImageCost, announce
from agents.resuming import (
    begin,
    changes_loss,
    check_continues,
    checkpoint_to_resume,
    chooses_anew,
)
from agents.sources import build_source
from agents.steering import check_stopping, choosing, safeguards, validates
from agents.summary import goals
from agents.tuning import tune_chunk_size, tune_lr
from callbacks.guard import Guard
from callbacks.interruption import Interruption, stopping_at_once
from callbacks.progress import Pace, PartsTable, ProgressBar
from callbacks.report import Report
from callbacks.throughput import Throughput
from config.effective import active_settings
from config.hparams import Hparams
from config.length import resolve_for_data
from config.resolve import resolve
from config.validation import check
from config.yaml_files import write_yaml
from datamodules.base import ImageDataModule
from datamodules.self_supervised import ViewsDataModule
from utils.checkpoint_io import RunCheckpoints
from utils.console import console, quiet_libraries
from utils.device import (
    check_compiles,
    resolve_precision,
    usable_device,
    use_own_gpu,
    use_same_numbers,
    use_tensor_cores,
)
from utils.logging import own_log
from utils.run_checkpoints import map_run_checkpoint, read_run_checkpoint
from utils.run_folder import RunFolder, create, folder_of_leader
from utils.stopwatch import Stopwatch

_EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 130}


class Trainer:
    """One run, from settings to summary.

    Args:
        hparams: settings; `run.resume` is `none` or the folder of the run to continue.
        experiment: what a run without a name is named after.
        tried_out: settings of the run that this one tries out; None: it is no try-out.

    Raises:
        ConfigError: settings that are impossible or have no effect.
    """

    def __init__(
        self,
        hparams: Hparams,
        experiment: str | None = None,
        tried_out: Hparams | None = None,
    ) -> None:
        self.given = check(hparams)  # those of a notebook have not been checked
        self.tried_out = tried_out
        self.device = usable_device(hparams.trainer.accelerator)
        self.experiment = experiment
        self.hparams = resolve(self.given)
        options = self.hparams.trainer
        options.precision = resolve_precision(options.precision, options.accelerator)  # type: ignore[assignment]
        if self.device.type == "cuda":
            use_own_gpu()
        if options.compile:
            check_compiles(self.device)
        self.checkpoint = checkpoint_to_resume(hparams.run.resume)
        self.resumed = self.checkpoint is not None
        self.chooses_anew = self.other_loss = False
        # Whether this process, of several, is the one that writes.
        self.leads = getattr(rank_zero_only, "rank", 0) == 0
        self.stopwatch = Stopwatch()

    def run(self) -> int:
        """Trains and tests.

        Returns:
            Exit code: 0 finished, 1 failed, 130 interrupted and saved.
        """
        with self.stopwatch.timing("preparation"):  # all but what has a phase of its own
            return self._run()

    def _run(self) -> int:
        quiet_libraries()
        if use_tensor_cores(self.hparams.trainer.precision, self.device) and self.leads:
            console.info("Matrix products that stay in float32 use TF32.")
        use_same_numbers(self.hparams.run.deterministic, self.device)
        pl.seed_everything(self.hparams.run.seed, workers=True, verbose=False)
        source = build_source(self.hparams)
        data = self._list_images(build_data(self.hparams, source))
        agent = build_agent(self.hparams, source, loaded=not self.resumed)
        # Reads every mask, which may take minutes: only once the weights are known to be there.
        data.check(Path(self.hparams.run.dir) / ".cache")
        lay_out(agent, self.device)
        options = self.hparams.trainer
        choose_attention(agent, int(self.hparams.data.image_size), options.precision, self.device)
        cost = ImageCost(agent, data)
        choose = partial(resolve_chunk_size, agent, data, self.hparams, self.device, cost)
        options.chunk_size = common_chunk_size(self.leads, choose)
        data.loading = build_loading(self.hparams)
        if self.leads:
            images, tried_out = len(data.train_files), self.tried_out is not None
            announce(self.given, agent, images, cost, tried_out)
        if self.checkpoint is not None:
            self._check_checkpoint(agent, data, self.checkpoint)
        agent.prepare(data, self.device, self.checkpoint)
        check_stopping(self.hparams, data)
        folder = self._open_folder()
        with folder.held() if self.leads else nullcontext():
            if self.leads:
                begin(folder, self.resumed, self.hparams.trainer.accelerator)
            self._tune(agent, data)
            # A plain dict: a pickled dataclass could not be loaded with weights_only=True.
            agent.save_hyperparameters(active_settings(self.hparams))
            self._write_settings(folder)
            try:
                with stopping_at_once():
                    return self._fit(agent, data, folder)
            # Before the first step, or while the run is being closed.
            except (KeyboardInterrupt, SystemExit) as stop:
                words = f"What was saved is in {folder.checkpoints}. Resume the run with"
                raise KeyboardInterrupt(f"{words}\n{resume_command(folder, self.given)}") from stop

    def _list_images(self, data: ImageDataModule) -> ImageDataModule:
        """Lists the images, and resolves the settings that depend on their number."""
        if self.leads:
            data.prepare_data()
        data.setup("fit")
        on_gpu = self.device.type == "cuda"
        self.hparams = resolve_for_data(self.hparams, len(data.train_files), on_gpu)
        data.loading = build_loading(self.hparams)
        return data

    def _check_checkpoint(self, agent: Agent, data: ImageDataModule, file: Path) -> None:
        """Checks that the run can go on from its checkpoint, and notes what has changed since."""
        saved = read_run_checkpoint(file)
        check_continues(agent, data, file, saved)
        check_fits(agent, file, saved)
        check_best(agent, file)
        self.chooses_anew = chooses_anew(agent, data, saved)
        self.other_loss = changes_loss(self.hparams, saved)

    def _open_folder(self) -> RunFolder:
        run = self.hparams.run
        if run.resume != "none":
            return RunFolder(Path(run.resume))
        if not self.leads:
            return folder_of_leader(run.dir, run.name)
        return create(run.dir, run.name, self.experiment)

    def _tune(self, agent: Agent, data: ImageDataModule) -> None:
        options = self.hparams.trainer
        make_trainer = partial(lightning_trainer, self.hparams, self.device)
        if options.tune_batch_size:
            batch = int(self.hparams.data.batch_size)
            sizes = cast(ViewsDataModule, data).views.sizes
            chunk = tune_chunk_size(agent, make_trainer, batch, sizes, self.device)
            console.info("tune_batch_size: chunk_size %d", chunk)
            if options.compile and chunk < batch:
                console.info("trainer.compile: no effect, chunks are recomputed uncompiled.")
                options.compile = False
            # None, as it was tried: given a number, DINO would process one view at a time.
            options.chunk_size = chunk if chunk < batch else None
            data.loading = build_loading(self.hparams)
        if options.tune_lr:
            agent.lr = tune_lr(agent, data, make_trainer, self.device)
            console.info("tune_lr: learning rate %.3g", agent.lr)
        options.tune_batch_size = options.tune_lr = False

    def _write_settings(self, folder: RunFolder) -> None:
        if not self.leads:
            return
        saved = deepcopy(self.hparams)
        saved.run.name, saved.run.resume = None, "none"
        write_yaml(active_settings(saved), folder.hparams)

    def _fit(self, agent: Agent, data: ImageDataModule, folder: RunFolder) -> int:
        transductive = is_transductive(data, self.hparams)
        observers = self._observers(agent, folder, transductive)
        trainer = lightning_trainer(
            self.hparams,
            self.device,
            logger=observers.loggers,
            callbacks=[
                observers.throughput,
                observers.unreadable,
                *safeguards(folder, self.hparams.run.seed, self.device),
                # Before the observers, which ask whether training ends here.
                *choosing(agent, data, folder),
                *observers.callbacks,
                *observers.reports,
                # After the observers: its checkpoint holds what they found in the last step.
                Interruption(folder.last),
                PartsTable(agent.parts),
                Pace(observers.throughput),
                ProgressBar(observers.goals),
            ],
            plugins=[RunCheckpoints(folder, observers.flush, self.chooses_anew, self.other_loss)],
            **({} if validates(self.hparams, data) else {"limit_val_batches": 0}),
            enable_checkpointing=True,
            enable_progress_bar=True,
            default_root_dir=folder.path,
        )
        fitting = Fitting(
            trainer, agent, data, folder, self.checkpoint, self.stopwatch, self.device
        )
        try:
            fitting.run()
        finally:
            closed = close(fitting, observers, transductive)
        end = fitting.end
        if self.leads:
            show(folder, self.hparams, closed, self._next(folder, data, end))
        return _EXIT_CODES[end.status if closed.recorded else "failed"]

    def _observers(self, agent: Agent, folder: RunFolder, transductive: bool) -> Observers:
        """Returns what observes the run; of several processes only the leader writes."""
        guard = Guard(self.device, self.stopwatch)
        callbacks = build_callbacks(self.hparams, guard)
        watched = goals(agent, callbacks)
        reports, loggers = [], []
        if self.leads:
            loggers = build_loggers(self.hparams, folder, watched, transductive, guard)
            if self.hparams.callbacks.report.enabled:
                reports = [guard.around("report", Report(folder))]
        if self.checkpoint is not None and (log := own_log(loggers)):
            # Rows count steps from 0: this is the next one's, and the test's, which is repeated.
            log.forget_from(int(map_run_checkpoint(self.checkpoint)["global_step"]))
        return Observers(guard, callbacks, watched, reports, loggers, Throughput(self.stopwatch))

    def _next(self, folder: RunFolder, data: ImageDataModule, end: End) -> list[Step]:
        if end.status == "finished":
            return next_steps(folder, self.given, self.hparams, data.source, self.tried_out)
        return [Step("go on", resume_command(folder, self.given, end.advice))]
