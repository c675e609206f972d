"""A run on wandb, or kept offline for it: how it starts, what it shows where, how it ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning.loggers import WandbLogger

from config.hparams import LoggerHparams
from utils.console import console
from utils.figures import pixels
from utils.palette import VOID
from utils.run_folder import RunFolder

INIT_TIMEOUT = 10  # seconds to wait for the wandb service; its log-in check takes five more
FINISH_TIMEOUT = 60  # seconds to wait for the last upload


class WandbRun(WandbLogger):
    """Scalars as Lightning logs them, figures, and images with switchable masks.

    Args:
        run: of wandb, started.
    """

    def __init__(self, run: Any) -> None:
        super().__init__(experiment=run, log_model=False)

    def log_figure(
        self, kind: str, figure: Figure, step: int, arrays: Mapping[str, NDArray[Any]] | None
    ) -> None:
        """Logs a figure as a picture."""
        self.log_image(kind, [pixels(figure)])

    def log_masks(
        self,
        key: str,
        images: Sequence[NDArray[np.uint8]],
        masks: Mapping[str, Sequence[NDArray[np.uint8]]],
        names: Mapping[int, str],
    ) -> None:
        """Logs images with masks that can be switched on and off."""
        labels = {**names, VOID: "void"}
        overlays = [
            {
                name: {"mask_data": of_all[index], "class_labels": labels}
                for name, of_all in masks.items()
            }
            for index in range(len(images))
        ]
        self.log_image(key, list(images), masks=overlays)

    def finish(self) -> str:
        """Closes the run; a lost network does not hold that up.

        Returns:
            How to look at what it holds.
        """
        run = self.experiment
        folder = run.settings.sync_dir
        closing = threading.Thread(target=run.finish, daemon=True)
        closing.start()
        closing.join(FINISH_TIMEOUT)
        if run.settings.mode == "online" and not closing.is_alive():
            return f"wandb: {run.url}"
        return f"wandb leet {folder}   (in the terminal), wandb sync {folder}   (upload)"


def start(settings: LoggerHparams, folder: RunFolder, group: str | None = None) -> Any | None:
    """Starts a run of wandb, or goes on with the one a folder had; None where it is disabled.

    Args:
        settings: whether and where to.
        folder: of the run, which is called after it.
        group: of wandb's runs that it belongs to.

    Raises:
        ValueError: it is to be online, and is not.
    """
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
    run = start(settings, folder, group=folder.name)
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
