"""Where a run reports: its own folder always, wandb and TensorBoard when they are there."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from config.hparams import LoggerHparams
from utils.console import console
from utils.logging import RunFolderLogger
from utils.run_folder import RunFolder, write_environment

INIT_TIMEOUT = 10  # seconds to wait for the wandb service; its log-in check takes five more
FINISH_TIMEOUT = 60  # seconds to wait for the last upload


def build_loggers(settings: LoggerHparams, folder: RunFolder) -> list[Logger]:
    """Returns the active loggers, the run folder's first."""
    loggers: list[Logger] = [RunFolderLogger(folder)]
    if importlib.util.find_spec("tensorboard"):
        loggers.append(TensorBoardLogger(folder.path, name="", version="tensorboard"))
    run = _wandb_run(settings, folder)
    if run is not None:
        loggers.append(WandbLogger(experiment=run, log_model=False))
        write_environment(folder, folder.read_environment() | {"wandb_id": run.id})
    return loggers


def _wandb_run(settings: LoggerHparams, folder: RunFolder, group: str | None = None) -> Any | None:
    mode = os.environ.get("WANDB_MODE") or settings.mode
    if mode == "disabled":
        return None
    # Chosen by us, below: the variable would overrule the fallback.
    os.environ.pop("WANDB_MODE", None)
    # It takes our folder `agents` for a library of that name and recommends another product.
    os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
    import wandb

    if mode == "auto":
        mode, reason = _reachable(wandb)
        if reason:
            console.info("wandb: %s; logging offline.", reason)
    common: dict[str, Any] = {
        "project": settings.project,
        "entity": settings.entity,
        "name": folder.name,
        "group": group,
        "dir": str(folder.path),
        "id": folder.read_environment().get("wandb_id"),
        "resume": "allow",
        "settings": wandb.Settings(init_timeout=INIT_TIMEOUT, silent=True, console="off"),
    }
    if mode == "online":
        try:
            return wandb.init(mode="online", **common)
        except wandb.errors.Error as error:
            if settings.mode == "online":
                raise ValueError(
                    f"--logger.mode online: wandb cannot be reached ({_one_line(error)}). Use auto "
                    "or offline."
                ) from error
            console.info("wandb: not reachable (%s); logging offline.", _one_line(error))
    return wandb.init(mode="offline", **common)


def log_table(
    settings: LoggerHparams,
    folder: RunFolder,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    pictures: Mapping[str, Path],
    about: str,
) -> None:
    """Logs a table with pictures as a wandb run of its own, in the group that has its name.

    Args:
        settings: whether and where to.
        folder: of the run, which is called after it.
        columns: of the table.
        rows: of the table.
        pictures: files by title.
        about: what to know when reading it.
    """
    run = _wandb_run(settings, folder, group=folder.name)
    if run is None:
        return
    import wandb

    table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
    images = {title: wandb.Image(str(file)) for title, file in pictures.items()}
    run.log({"table": table, **images})
    run.summary["about"] = about
    run.finish()


def _reachable(wandb: Any) -> tuple[str, str | None]:
    try:
        found = wandb.login(prompt=False, verify=False)
    except wandb.errors.Error as error:
        return "offline", f"the API key is not accepted ({_one_line(error)})"
    return ("online", None) if found else ("offline", "no API key")


def _one_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__


def finish(loggers: list[Logger]) -> list[str]:
    """Closes the loggers; a lost network does not hold the end of a run up.

    Returns:
        How to look at what they hold.
    """
    hints: list[str] = []
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            hints.append(f"tensorboard --logdir {logger.log_dir}")
        if not isinstance(logger, WandbLogger):
            continue
        run = logger.experiment
        folder = run.settings.sync_dir
        closing = threading.Thread(target=run.finish, daemon=True)
        closing.start()
        closing.join(FINISH_TIMEOUT)
        if run.settings.mode == "online" and not closing.is_alive():
            hints.append(f"wandb: {run.url}")
        else:
            hints.append(f"wandb leet {folder}   (in the terminal), wandb sync {folder}   (upload)")
    return hints
