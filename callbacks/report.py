"""report.html: a run on one page that needs no network."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer

from callbacks.learning_curves import draw as draw_curves
from callbacks.learning_curves import is_curve
from utils.figures import close
from utils.files import name_damaged, write_atomically
from utils.logging import RunFolderLogger, read_metrics
from utils.nested import flat
from utils.page import data_uri, fit, picture_uri, render
from utils.run_folder import RunFolder

SECONDS_BETWEEN = 60
MAX_STEPS = 12
_STEP = "step-"


class Report(Callback):
    """Rewrites the page at most once a minute; the trainer writes it a last time.

    Args:
        folder: of the run; everything on the page is read from it.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._written = time.monotonic()
        # So that a picture is encoded once, not every minute.
        self._encoded: dict[tuple[Path, float, int | None], str] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes it when it is time."""
        if time.monotonic() - self._written > SECONDS_BETWEEN:
            for logger in trainer.loggers:
                if isinstance(logger, RunFolderLogger):
                    logger.flush()
            self.write()

    def write(self, result: Mapping[str, Any] | None = None) -> None:
        """Writes the page from what the folder holds now.

        Args:
            result: what summary.json will hold; None: what it holds.

        Raises:
            OSError: it cannot be written.
        """
        summary = self.folder.read_summary() if result is None else result
        environment, settings = self.folder.read_environment(), self._settings()
        curves = _curves(read_metrics(self.folder.path / "metrics.csv"))
        files = self._pictures()
        known, self._encoded = self._encoded, {}  # forgets pictures that are on the page no more

        def draw(width: int | None) -> str:
            return render(
                "run.html",
                title=self.folder.name,
                picture_width=width,
                headline=_headline(summary, environment, settings),
                results=_results(summary),
                classes=_classes(summary),
                curves=data_uri(curves, width) if curves else None,
                galleries={
                    kind: [
                        {"step": _step(file), "uri": uri}
                        for file in evenly(shown)
                        if (uri := self._encode(file, width, known))
                    ]
                    for kind, shown in files.items()
                },
                settings=flat(settings),
                environment=flat(environment),
            )

        write_atomically(self.folder.path / "report.html", fit(draw))
        self._written = time.monotonic()

    def _pictures(self) -> dict[str, list[Path]]:
        kinds: dict[str, list[Path]] = {}
        for file in sorted(self.folder.figures.rglob(f"{_STEP}*.png")):
            kind = file.parent.relative_to(self.folder.figures).as_posix()
            kinds.setdefault(kind, []).append(file)
        kinds.pop("learning_curves", None)  # drawn anew for the page
        return dict(sorted(kinds.items()))

    def _settings(self) -> dict[str, Any]:
        try:
            found = yaml.safe_load(self.folder.hparams.read_text())
        except (OSError, ValueError, yaml.YAMLError):
            found = None
        return found if isinstance(found, dict) else {}

    def _encode(
        self, file: Path, width: int | None, known: Mapping[tuple[Path, float, int | None], str]
    ) -> str | None:
        key = (file, file.stat().st_mtime, width)
        try:
            self._encoded[key] = known.get(key) or picture_uri(file, width)
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow says of damaged files
            name_damaged(file, str(error))
            return None
        return self._encoded[key]


def _curves(rows: Mapping[int, Mapping[str, float]]) -> Image.Image | None:
    # A run that only measures has no curve.
    if not any(is_curve(name) for row in rows.values() for name in row):
        return None
    figure, file = draw_curves(_thinned(rows)), io.BytesIO()
    figure.savefig(file, format="png")
    close(figure)
    return Image.open(file)


def evenly(files: list[Path]) -> list[Path]:
    """Picks at most 12 files evenly, the first and the last among them."""
    if len(files) <= MAX_STEPS:
        return files
    return [files[round(i * (len(files) - 1) / (MAX_STEPS - 1))] for i in range(MAX_STEPS)]


def _thinned(
    rows: Mapping[int, Mapping[str, float]], most: int = 2000
) -> Mapping[int, Mapping[str, float]]:
    # Rows with a validation always stay.
    every = -(-len(rows) // most)
    kept = {}
    for number, (step, row) in enumerate(sorted(rows.items())):
        if number % every == 0 or any(name.startswith("val/") for name in row):
            kept[step] = row
    return kept


def _step(file: Path) -> int:
    return int(file.stem.removeprefix(_STEP))


def _headline(
    summary: Mapping[str, Any], environment: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[str]:
    state, values = summary.get("status", "running"), flat(settings)
    task, backbone, data = (values.get(key) for key in ("task", "backbone.name", "data.name"))
    parts = [f"{task}: {backbone} on {data}" if task else ""]
    parts += [str(state), str(environment.get("started", ""))[:16], environment.get("device", "")]
    if summary.get("transductive"):
        parts.append("TRANSDUCTIVE: training saw evaluation images")
    if summary.get("reason"):
        parts.append(str(summary["reason"]))
    parts += summary.get("alarms", [])
    failures = summary.get("readout_failures", {})
    parts += [f"{name} failed {count}x" for name, count in failures.items()]
    return [part for part in parts if part]


def _results(summary: Mapping[str, Any]) -> dict[str, Any]:
    shown_elsewhere = ("alarms", "reason", "readout_failures")
    return {
        name: value
        for name, value in summary.items()
        if "/iou/" not in name and name not in shown_elsewhere
    }


def _classes(summary: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Returns IoU by split and class, the best class first."""
    found: dict[str, dict[str, float]] = {}
    for name, value in summary.items():
        split, separator, label = name.partition("/iou/")
        if separator:
            found.setdefault(split, {})[label] = value
    return {
        split: dict(sorted(ious.items(), key=lambda item: -item[1]))
        for split, ious in sorted(found.items())
    }
