"""Logs a run to wandb, online or offline.

wandb groups keys into sections by what stands before the first slash, in alphabetical order:
`test`, `train` and `val` come first, then `visuals`, then `within` for scalars by the dozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from agents.wandb_start import finished
from utils.figures import Picture
from utils.logging import Chart, one_of_many
from utils.palette import VOID
from utils.run_folder import RunFolder
from utils.text import command_line

STEP = "trainer/global_step"  # Lightning's name of the x axis
VISUALS, WITHIN = "visuals", "within"
# By kind of chart: wandb's own design, and what it calls the columns.
_DESIGNS = {
    "bars": ("wandb/bar/v0", ("label", "value")),
    "confusion": ("wandb/confusion_matrix/v1", ("Actual", "Predicted", "nPredictions")),
}


class WandbRun(WandbLogger):
    """Numbers, pictures, masks and tables over the trainer's steps, and the run's files.

    Args:
        run: of wandb, already started.
        goals: names of the numbers that matter, each with `max` or `min`, whichever is best.
    """

    def __init__(self, run: Any, goals: Mapping[str, str]) -> None:
        super().__init__(experiment=run, log_model=False)
        # Lightning does this only for a run that it starts itself.
        run.define_metric(STEP)
        axis: dict[str, Any] = {"step_metric": STEP, "step_sync": True}
        run.define_metric("*", **axis)
        for name, best in goals.items():
            run.define_metric(key_of(name), summary=f"{best},last", **axis)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs scalars."""
        super().log_metrics({key_of(name): value for name, value in metrics.items()}, step)

    def log_figure(
        self, kind: str, picture: Picture, step: int, arrays: Mapping[str, NDArray[Any]] | None
    ) -> None:
        """Logs a figure with its title below."""
        import wandb

        # As a file, which wandb copies; it would encode pixels again.
        with TemporaryDirectory() as folder:
            file = Path(folder, "figure.png")
            file.write_bytes(picture.png)
            self._show(kind, wandb.Image(str(file), caption=picture.title), step)

    def log_masks(
        self,
        kind: str,
        images: Sequence[NDArray[np.uint8]],
        masks: Mapping[str, Sequence[NDArray[np.uint8]]],
        names: Mapping[int, str],
        captions: Sequence[str],
        step: int,
    ) -> None:
        """Logs images with masks that can be switched on and off.

        Images under one key must have one size: smaller ones are padded with void.
        """
        import wandb

        labels = {**names, VOID: "void"}
        height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
        shown = []
        for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
            margin = ((0, height - image.shape[0]), (0, width - image.shape[1]))
            overlays = {
                name: {
                    "mask_data": np.pad(of_all[index], margin, constant_values=VOID),
                    "class_labels": labels,
                }
                for name, of_all in masks.items()
            }
            padded = np.pad(image, (*margin, (0, 0)))
            shown.append(wandb.Image(padded, caption=caption, masks=overlays))
        self._show(kind, shown, step)

    def log_histograms(
        self,
        kind: str,
        counts: Mapping[str, NDArray[np.int64]],
        edges: NDArray[np.float64],
        step: int,
    ) -> None:
        """Logs histograms, in a section of their own."""
        import wandb

        shown = {
            f"{kind}/{name}": wandb.Histogram(np_histogram=(each, edges))
            for name, each in counts.items()
        }
        self.experiment.log({**shown, STEP: step})

    def log_chart(self, kind: str, chart: Chart, step: int) -> None:
        """Logs a table, drawn by wandb where it can."""
        import wandb

        table = wandb.Table(columns=list(chart.columns), data=[list(row) for row in chart.rows])
        if chart.kind is None:
            self._show(kind, table, step)
            return
        design, fields = _DESIGNS[chart.kind]
        drawn = wandb.plot_table(
            vega_spec_name=design,
            data_table=table,
            fields=dict(zip(fields, chart.columns, strict=True)),
            string_fields={"title": chart.title},
        )
        self._show(f"{kind}/chart", drawn, step)

    def _show(self, kind: str, shown: Any, step: int) -> None:
        self.experiment.log({f"{VISUALS}/{kind}": shown, STEP: step})

    def attach(self, folder: RunFolder, *names: str) -> None:
        """Adds files of the run's folder to the wandb run, if they exist."""
        for file in (folder.path / name for name in names):
            if file.exists():
                self.experiment.save(file, base_path=folder.path, policy="now", glob=False)

    def finish(self, facts: Mapping[str, Any]) -> str:
        """Closes the run, without waiting long for a lost network or service.

        Args:
            facts: for its summary, beside the numbers that were logged.

        Returns:
            How to view it.
        """
        run = self.experiment
        if finished(run, facts) and run.settings.mode == "online":
            return f"wandb: {run.url}"
        here = Path(run.settings.sync_dir)
        # Each resume has made another folder, named after the time.
        parts = {here, *here.parent.glob(f"offline-run-*-{run.id}")}
        ordered = sorted(parts, key=lambda part: part.name.removeprefix("offline-"))
        upload = command_line("wandb", "sync", *map(str, ordered))
        look = command_line("wandb", "leet", str(here))
        return f"wandb, in the terminal\n    {look}\nwandb, upload\n    {upload}"


def key_of(name: str) -> str:
    """Returns the key of a scalar; one of many goes to a section of its own."""
    return f"{WITHIN}/{name}" if one_of_many(name) else name
