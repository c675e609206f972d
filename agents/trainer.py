"""Hparams to a finished run: agent, data, callbacks, loggers → tune → fit → summary."""

from __future__ import annotations

import dataclasses
import logging
import time
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, RichModelSummary, RichProgressBar

from agents import summary
from agents.loggers import build_loggers, finish
from agents.tuning import tune_chunk_size, tune_lr
from callbacks.interruption import Interrupted, Interruption
from callbacks.non_finite_loss import NonFiniteLoss, NonFiniteLossError
from callbacks.random_state import RandomState
from callbacks.throughput import Throughput
from callbacks.unreadable_images import UnreadableImages
from config import names
from config.convert import write_yaml
from config.hparams import Hparams
from config.resolve import resolve
from config.validation import active_settings
from datamodules.base import ImageDataModule
from datamodules.loading import Loading
from models.backbones.base import Backbone
from models.backbones.loading import load_weights
from utils.device import check_accelerator, resolve_precision
from utils.logging import RunFolderLogger
from utils.memory import reset_peak
from utils.run_folder import RunFolder, create, record_environment
from utils.weights import read_checkpoint

_console = logging.getLogger("twinsight")


class Trainer:
    """One run, from settings to summary.

    Args:
        hparams: checked settings; `run.resume` is `none` or the folder of the run to continue.
    """

    def __init__(self, hparams: Hparams) -> None:
        check_accelerator(hparams.trainer.accelerator)
        self.hparams = resolve(hparams)
        options = self.hparams.trainer
        options.precision = resolve_precision(options.precision, options.accelerator)  # type: ignore[assignment]
        self.resumed = hparams.run.resume != "none"

    def run(self) -> int:
        """Trains.

        Returns:
            Exit code: 0 finished, 1 failed, 130 interrupted and saved.
        """
        quiet_libraries()
        pl.seed_everything(self.hparams.run.seed, workers=True, verbose=False)
        torch.set_float32_matmul_precision("high")
        data = build_data(self.hparams)
        data.prepare_data()
        data.setup("fit")
        agent = self._build_agent()
        data.train_dataloader()  # a batch larger than the data set stops before a folder is made
        folder = self._open_folder(agent)
        self._tune(agent, data)
        data = build_data(self.hparams)
        # A plain dict: a pickled dataclass could not be loaded with weights_only=True.
        agent.save_hyperparameters(active_settings(self.hparams))
        self._write_settings(folder)
        return self._fit(agent, data, folder)

    def _build_agent(self) -> pl.LightningModule:
        backbone = build_backbone(self.hparams, load=not self.resumed)
        agent: pl.LightningModule = names.TASKS[self.hparams.task].load()(backbone, self.hparams)
        return agent

    def _open_folder(self, agent: pl.LightningModule) -> RunFolder:
        run = self.hparams.run
        if not self.resumed:
            folder = create(run.dir, run.name)
            record_environment(folder, device_name(self.hparams.trainer.accelerator))
            return folder
        folder = RunFolder(Path(run.resume))
        if not folder.last.exists():
            raise FileNotFoundError(
                f"--run.resume: {folder.path} has no checkpoint to continue from ({folder.last})."
            )
        check_fits(agent, folder.last)
        return folder

    def _tune(self, agent: pl.LightningModule, data: ImageDataModule) -> None:
        options = self.hparams.trainer
        if options.tune_batch_size:
            options.chunk_size = tune_chunk_size(
                agent,
                self._lightning_trainer,
                self.hparams.data.batch_size,
                self.hparams.data.image_size,
            )
            _console.info("tune_batch_size: chunk_size %d", options.chunk_size)
        if options.tune_lr:
            # The batches are loaded in the chunks just found.
            data = build_data(self.hparams)
            agent.lr = self.hparams.optim.lr = tune_lr(agent, data, self._lightning_trainer)  # type: ignore[assignment]
            _console.info("tune_lr: learning rate %.3g", agent.lr)
        options.tune_batch_size = options.tune_lr = False

    def _write_settings(self, folder: RunFolder) -> None:
        saved = deepcopy(self.hparams)
        saved.run.name, saved.run.resume = None, "none"
        write_yaml(active_settings(saved), folder.hparams)

    def _lightning_trainer(self, **overrides: Any) -> pl.Trainer:
        options = self.hparams.trainer
        settings: dict[str, Any] = {
            "max_epochs": options.max_epochs if options.max_steps is None else -1,
            "max_steps": -1 if options.max_steps is None else options.max_steps,
            "precision": options.precision,
            "accelerator": options.accelerator,
            "devices": options.devices,
            "strategy": options.strategy,
            "accumulate_grad_batches": options.accumulate,
            "gradient_clip_val": options.gradient_clip or None,
            "limit_val_batches": options.limit_val_batches,
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

    def _fit(self, agent: pl.LightningModule, data: ImageDataModule, folder: RunFolder) -> int:
        loggers = build_loggers(self.hparams.logger, folder)
        throughput, unreadable = Throughput(), UnreadableImages()
        validates = self.hparams.trainer.limit_val_batches != 0 and data.num_val >= 2
        if self.hparams.callbacks.early_stopping.enabled and not validates:
            raise ValueError("--callbacks.early_stopping needs validation images, there are none.")
        checkpoints = _checkpoints(folder, validates)
        trainer = self._lightning_trainer(
            logger=loggers,
            callbacks=[
                throughput,
                unreadable,
                NonFiniteLoss(folder.last),
                Interruption(folder.last),
                RandomState(),
                *self._figure_callbacks(),
                *checkpoints,
                RichProgressBar(leave=False),
                RichModelSummary(max_depth=1),
            ],
            enable_checkpointing=True,
            enable_progress_bar=True,
            enable_model_summary=True,
            default_root_dir=folder.path,
        )
        if self.resumed:
            _forget_later_steps(loggers, folder)
        reset_peak()
        started, status, reason = time.perf_counter(), "failed", None
        try:
            resume = folder.last if self.resumed else None
            trainer.fit(agent, datamodule=data, ckpt_path=resume, weights_only=True)
            status = "finished"
            save_backbone(agent, folder)
        except Interrupted as interruption:
            status, reason = "interrupted", str(interruption)
        except SystemExit:
            # Lightning's answer to a second Ctrl-C.
            status, reason = "interrupted", "stopped at once"
        except NonFiniteLossError as error:
            reason = str(error)
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
            raise
        finally:
            result = summary.collect(trainer, throughput, unreadable, data, status, reason)
            result["wall_seconds"] = round(time.perf_counter() - started, 1)
            folder.write_summary(folder.read_summary() | result)
            for logger in loggers:
                logger.finalize(status)
            hints = finish(loggers)
        summary.show(folder, self.hparams, agent, result, hints)
        return {"finished": 0, "interrupted": 130}.get(status, 1)

    def _figure_callbacks(self) -> list[pl.Callback]:
        built = []
        for name, part in names.CALLBACKS.items():
            settings = dataclasses.asdict(getattr(self.hparams.callbacks, name))
            if settings.pop("enabled"):
                built.append(part.load()(**settings))
        return built


def build_data(hparams: Hparams) -> ImageDataModule:
    """Builds the chosen data set with the views the task asks for."""
    data, part = hparams.data, names.DATASETS[hparams.data.name]
    loading = Loading(
        data.batch_size,
        data.num_workers or 0,
        hparams.run.seed,
        hparams.trainer.chunk_size,
        hparams.trainer.limit_train_batches,
    )
    views = names.TASKS[hparams.task].load().views(hparams)
    settings = {leaf: getattr(data, leaf) for leaf in part.settings}
    module: ImageDataModule = part.load()(
        root=data.root, views=views, image_size=data.image_size, loading=loading, **settings
    )
    return module


def build_backbone(hparams: Hparams, load: bool = True) -> Backbone:
    """Builds the chosen backbone, loads its weights and freezes what is to be frozen.

    Args:
        hparams: settings.
        load: False leaves it at random, for a checkpoint to fill.
    """
    settings, part = hparams.backbone, names.BACKBONES[hparams.backbone.name]
    chosen = {leaf: getattr(settings, leaf) for leaf in part.settings}
    chosen = {leaf: value for leaf, value in chosen.items() if value is not None}
    backbone: Backbone = part.load()(image_size=hparams.data.image_size, **chosen)
    report = load_weights(backbone, settings.weights, hparams.run.dir) if load else None
    if report:
        _console.info("%s", report)
    if settings.freeze:
        backbone.freeze(settings.unfreeze_last)
    return backbone


def _checkpoints(folder: RunFolder, validates: bool) -> list[ModelCheckpoint]:
    common: dict[str, Any] = {"dirpath": folder.checkpoints, "enable_version_counter": False}
    best = ModelCheckpoint(filename="best", monitor="val/loss", mode="min", **common)
    last = ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **common)
    return [best, last] if validates else [last]


def _forget_later_steps(loggers: list[Any], folder: RunFolder) -> None:
    step = int(read_checkpoint(folder.last)["global_step"])
    for logger in loggers:
        if isinstance(logger, RunFolderLogger):
            logger.forget_after(step)


def check_fits(agent: pl.LightningModule, checkpoint: Path) -> None:
    """Compares a checkpoint with the agent it is to be loaded into.

    Raises:
        ValueError: another architecture; names the first difference.
    """
    saved = {key: value.shape for key, value in read_checkpoint(checkpoint)["state_dict"].items()}
    own = {key: value.shape for key, value in agent.state_dict().items()}
    for key in sorted(saved.keys() | own.keys()):
        if saved.get(key) != own.get(key):
            there, here = (str(tuple(s[key])) if key in s else "absent" for s in (saved, own))
            raise ValueError(
                f"{checkpoint} is of another architecture: {key} is {there} there and {here} with "
                "these settings. Resume without changing --backbone or projector sizes."
            )


def save_backbone(agent: pl.LightningModule, folder: RunFolder) -> Path:
    """Writes backbone.pth: the backbone's last weights, key names of its public layout."""
    backbone: Any = agent.backbone
    torch.save({k: v.cpu() for k, v in backbone.net.state_dict().items()}, folder.backbone)
    return folder.backbone


def device_name(accelerator: str) -> str:
    """Names what the run trains on."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


def quiet_libraries() -> None:
    """Shows our messages plainly and silences notices a user can do nothing about."""
    if not _console.handlers:
        _console.addHandler(logging.StreamHandler())
        _console.setLevel(logging.INFO)
        _console.propagate = False
    # One-process runs: tips and hardware lines of Lightning.
    for name in ("pytorch_lightning.utilities.rank_zero", "pytorch_lightning.accelerators.cuda"):
        logging.getLogger(name).addFilter(_no_tips)
    # https://github.com/Lightning-AI/pytorch-lightning/issues/21296: on torch >= 2.10.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # On purpose: micro-batches stay on the host until they are needed.
    warnings.filterwarnings("ignore", message=".*overridden `transfer_batch_to_device`.*")
    # On purpose: a resumed run goes on in its folder, and the tuner's probe needs no validation.
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*have no `val_dataloader`.*")
    # The loaders are sized for the machine by data.num_workers.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Frozen backbones are in eval mode on purpose.
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")


def _no_tips(record: logging.LogRecord) -> bool:
    noise = (
        "litlogger",
        "GPU available",
        "TPU available",
        "HPU available",
        "Tip:",
        "💡",
        "Skipping setting a default",
        "to estimate number of stepping batches",
    )
    return not any(word in record.getMessage() for word in noise)
