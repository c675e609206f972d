"""How agents and callbacks report to all loggers and to the run folder."""

from __future__ import annotations

import math
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from utils.console import console
from utils.figures import Picture, picture
from utils.files import replacing, write_atomically
from utils.metrics_file import MetricsFile
from utils.run_folder import RunFolder

SAVE_SECONDS = 30  # if a machine crashes, metrics.csv lacks at most the last 30 seconds


class RunFolderLogger(Logger):
    """Scalars to metrics.csv, figures to figures/<kind>/step-*.png.

    On resume, rows of steps after the checkpoint are dropped, because these steps are repeated. If
    a file cannot be written during training, this warns once, and the run continues.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.folder = folder
        self.metrics = MetricsFile(folder.metrics)
        self._saved = time.monotonic()
        self._said: set[str] = set()

    @property
    def name(self) -> str:
        """Logger name."""
        return "run_folder"

    @property
    def version(self) -> str:
        """Name of the run."""
        return self.folder.name

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Does nothing: hparams.yaml is written when the run starts."""

    def forget_from(self, step: int) -> None:
        """Drops rows from a step on."""
        self.metrics.forget_from(step)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds scalars to the row of a step."""
        self.metrics.add(step or 0, {key: float(value) for key, value in metrics.items()})

    @rank_zero_only
    def log_figure(
        self, kind: str, picture: Picture, step: int, arrays: Mapping[str, NDArray[Any]] | None
    ) -> None:
        """Saves a figure and its arrays; the arrays replace those of the previous figure."""
        file = self.folder.figures / kind / f"step-{step:07d}.png"
        with self._saying():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, picture.png)
            if arrays:
                with replacing(file.with_name("newest.npz")) as stream:
                    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]

    @rank_zero_only
    def save(self) -> None:
        """Writes metrics.csv at intervals, as Lightning calls this after every step."""
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes new scalars to metrics.csv, if it can be written."""
        self._saved = time.monotonic()
        with self._saying():
            self.metrics.write()

    def flush_for_checkpoint(self) -> None:
        """Writes the scalars up to a checkpoint, which a resumed run would not log again.

        Lightning logs the means of an epoch, or of an interrupted step, right after the checkpoint:
        these are then written at once.
        """
        self.flush()
        self._saved = -math.inf

    @contextmanager
    def _saying(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if str(error) not in self._said:
                self._said.add(str(error))
                console.warning("warning: %s The run goes on.", error)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Rewrites metrics.csv with one row per step; Lightning calls this when training ends."""
        with self._saying():
            self.metrics.rewrite()


def own_log(loggers: Iterable[Logger]) -> RunFolderLogger | None:
    """Returns the logger of the run's folder; None in a process that writes nothing."""
    return next((each for each in loggers if isinstance(each, RunFolderLogger)), None)


@runtime_checkable
class TakesFigures(Protocol):
    """A logger that accepts figures."""

    def log_figure(
        self, kind: str, picture: Picture, step: int, arrays: Mapping[str, NDArray[Any]] | None
    ) -> None:
        """See `utils.logging.log_figure`."""
        ...


@runtime_checkable
class TakesMasks(Protocol):
    """A logger that shows masks on images, one at a time."""

    def log_masks(
        self,
        kind: str,
        images: Sequence[NDArray[np.uint8]],
        masks: Mapping[str, Sequence[NDArray[np.uint8]]],
        names: Mapping[int, str],
        captions: Sequence[str],
        step: int,
    ) -> None:
        """See `utils.logging.log_masks`."""
        ...


@dataclass(frozen=True)
class Chart:
    """A table, and how loggers that can should draw it.

    Attributes:
        title: of the drawing.
        columns: names of the columns.
        rows: of the table.
        kind: `bars`: of the second column by the first | `confusion`: true class, predicted class
            and their number in three columns | None: not drawn.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str | float | None]]
    kind: Literal["bars", "confusion"] | None = None


@runtime_checkable
class TakesCharts(Protocol):
    """A logger that shows tables."""

    def log_chart(self, kind: str, chart: Chart, step: int) -> None:
        """See `utils.logging.log_chart`."""
        ...


@rank_zero_only
def log_figure(
    trainer: Trainer,
    kind: str,
    figure: Figure,
    arrays: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Draws a figure, once for all active loggers, and closes it.

    Args:
        trainer: whose loggers and step are used.
        kind: e.g. `attention_maps/val`; the folder and the key of the picture.
        figure: closed afterwards.
        arrays: its data, for figures that compare runs; only the newest are kept.
    """
    drawn, step = picture(figure), trainer.global_step
    for logger in trainer.loggers:
        if isinstance(logger, TakesFigures):
            logger.log_figure(kind, drawn, step, arrays)


@rank_zero_only
def log_masks(
    trainer: Trainer,
    kind: str,
    images: Sequence[NDArray[np.uint8]],
    masks: Mapping[str, Sequence[NDArray[np.uint8]]],
    names: Mapping[int, str],
    captions: Sequence[str],
) -> None:
    """Sends images with switchable masks to loggers that can show them (wandb).

    Args:
        trainer: whose loggers and step are used.
        kind: the key of the picture.
        images: `(H, W, 3)` each.
        masks: by name, one `(H, W)` of labels per image.
        names: of the labels.
        captions: one per image.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TakesMasks):
            logger.log_masks(kind, images, masks, names, captions, trainer.global_step)


@rank_zero_only
def log_chart(trainer: Trainer, kind: str, chart: Chart) -> None:
    """Sends a table to loggers that can show it (wandb).

    Args:
        trainer: whose loggers and step are used.
        kind: the key of the table.
        chart: the table; one without rows is not sent.
    """
    for logger in trainer.loggers if chart.rows else ():
        if isinstance(logger, TakesCharts):
            logger.log_chart(kind, chart, trainer.global_step)


@runtime_checkable
class TakesHistograms(Protocol):
    """A logger that shows histograms."""

    def log_histograms(
        self,
        kind: str,
        counts: Mapping[str, NDArray[np.int64]],
        edges: NDArray[np.float64],
        step: int,
    ) -> None:
        """See `utils.logging.log_histograms`."""
        ...


@rank_zero_only
def log_histograms(
    trainer: Trainer,
    kind: str,
    counts: Mapping[str, NDArray[np.int64]],
    edges: NDArray[np.float64],
) -> None:
    """Sends histograms to loggers that can show them (wandb).

    Args:
        trainer: whose loggers and step are used.
        kind: prefix of their keys.
        counts: by name, `(B,)`.
        edges: of the bins, `(B + 1,)`.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TakesHistograms):
            logger.log_histograms(kind, counts, edges, trainer.global_step)


@rank_zero_only
def log_scalars(trainer: Trainer, scalars: Mapping[str, float]) -> None:
    """Sends finite scalars to all active loggers, as measured before the next step.

    Args:
        trainer: whose loggers are used.
        scalars: by name.
    """
    _log_scalars(trainer, scalars, trainer.global_step)


def log_after_step(trainer: Trainer, scalars: Mapping[str, float]) -> None:
    """The same for scalars measured after a step, before its checkpoint.

    Steps count from 0. Scalars logged for the next step would be dropped when a run resumes from
    that checkpoint.
    """
    _log_scalars(trainer, scalars, trainer.global_step - 1)


def _log_scalars(trainer: Trainer, scalars: Mapping[str, float], step: int) -> None:
    finite = {key: value for key, value in scalars.items() if math.isfinite(value)}
    for logger in trainer.loggers:
        logger.log_metrics(finite, step)


def one_of_many(name: str) -> bool:
    """Whether a scalar of this name belongs to one of many layers, heads or classes."""
    return name.count("/") > 1
