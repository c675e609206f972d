"""Writes report.html: a run on one page that needs no network."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer

from callbacks.attention_quality import LIFT
from callbacks.dense_knn import DenseKNN
from callbacks.learning_curves import draw as draw_curves
from callbacks.learning_curves import is_curve
from callbacks.online_probe import OnlineProbe
from utils.figures import picture
from utils.files import name_damaged, write_atomically
from utils.logging import own_log
from utils.metrics_file import last_values, read_metrics
from utils.nested import flat
from utils.page import data_uri, fit, picture_in, picture_uri, render
from utils.run_folder import RunFolder
from utils.spacing import evenly_from_first_to_last
from utils.text import TRANSDUCTIVE, command_line, format_result

SECONDS_BETWEEN = 60
COSTS_BETWEEN = 50  # times the duration of the last writing, to stay below 2 % of the time
MAX_STEPS = 12
MOST_NUMBERS = 6
_PICTURE = re.compile(r"step-(\d+)")
# Numbers at the top of the page, the purpose of a run first.
_NUMBERS = {
    "test/miou": "mIoU, test images",
    "test/accuracy": "pixel accuracy, test images",
    "test/linear_accuracy": "linear accuracy, test images",
    "test/knn_accuracy": "k-NN accuracy, test images",
    "val/miou": "mIoU, held-out images",
    **{
        name: f"{words}, held-out training images"
        for readout in (OnlineProbe, DenseKNN)
        for name, words in readout.headlines.items()
    },
    LIFT: "mass lift of attention on objects, training images",
    "val/loss": "loss, held-out images",
    "train/loss": "loss, training images",
    "steps": "steps",
    "images_per_second": "images per second",
}
# Pictures at the top of the page; the others follow in alphabetical order.
_FIRST_PICTURES = (
    "segmentation_predictions",
    "cross_correlation",
    "attention_maps",
    "attention_quality",
    "feature_maps",
    "embeddings",
)
_SHOWN_ABOVE = ("in_words", "alarms", "reason", "readout_failures")


class Report(Callback):
    """Rewrites the page at most once a minute, and rarely enough to cost little.

    The end of a run writes it a last time (`agents/closing.py`).

    Args:
        folder: of the run; everything on the page is read from it.
        now: returns the time in seconds.
    """

    def __init__(self, folder: RunFolder, now: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self._now = now
        self._written, self._cost = now(), 0.0
        # The pictures of the last page, so that each is encoded once, and the width that fitted.
        self._encoded: dict[tuple[Path, float, int | None], str] = {}
        self._width: int | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the page when it is time."""
        if self._now() - self._written > max(SECONDS_BETWEEN, COSTS_BETWEEN * self._cost):
            if log := own_log(trainer.loggers):
                log.flush()
            self.write()

    def write(self, result: Mapping[str, Any] | None = None) -> None:
        """Writes the page from what the folder holds now.

        Args:
            result: the future content of summary.json; None: its current content.

        Raises:
            OSError: it cannot be written.
        """
        started = self._now()
        summary = self.folder.read_summary() if result is None else result
        environment, settings = self.folder.read_environment(), self._settings()
        rows = read_metrics(self.folder.metrics)
        files = self._pictures()
        curves = _curves(rows, files.pop("learning_curves", []))
        known = self._encoded

        def draw(width: int | None) -> str:
            self._width, self._encoded = width, {}  # forgets other widths
            galleries = {kind: self._gallery(shown, width, known) for kind, shown in files.items()}
            return render(
                "run.html",
                title=self.folder.name,
                picture_width=width,
                headline=_headline(summary, environment, settings),
                words=_words(summary),
                numbers=_numbers(_so_far(rows) | dict(summary)),
                command=command_line(*_texts(environment.get("command"))),
                galleries={kind: pictures for kind, pictures in galleries.items() if pictures},
                curves=data_uri(curves, width) if curves else None,
                classes=_classes(summary),
                results=_results(summary),
                settings=flat(settings),
                environment=flat(environment),
            )

        write_atomically(self.folder.report, fit(draw, self._width))
        self._written = self._now()
        self._cost = self._written - started

    def _pictures(self) -> dict[str, list[Path]]:
        kinds: dict[str, list[Path]] = {}
        for file in sorted(self.folder.figures.rglob("step-*.png")):
            if _step(file) is None or not file.is_file():
                continue  # a user's copy, or a broken link
            kind = file.parent.relative_to(self.folder.figures).as_posix()
            kinds.setdefault(kind, []).append(file)
        return dict(sorted(kinds.items(), key=lambda item: _rank(item[0])))

    def _gallery(
        self,
        files: list[Path],
        width: int | None,
        known: Mapping[tuple[Path, float, int | None], str],
    ) -> list[dict[str, Any]]:
        return [
            {"step": _step(file), "uri": uri}
            for file in evenly_from_first_to_last(files, MAX_STEPS)
            if (uri := self._encode(file, width, known))
        ]

    def _settings(self) -> dict[str, Any]:
        try:
            found = yaml.safe_load(self.folder.hparams.read_bytes())
        except (OSError, ValueError, yaml.YAMLError):
            found = None
        return found if isinstance(found, dict) else {}

    def _encode(
        self, file: Path, width: int | None, known: Mapping[tuple[Path, float, int | None], str]
    ) -> str | None:
        key = (file, file.stat().st_mtime, width)
        try:
            self._encoded[key] = known.get(key) or picture_uri(file, width)
        except (OSError, SyntaxError, ValueError) as error:  # from Pillow for damaged files
            name_damaged(file, str(error))
            return None
        return self._encoded[key]


def _curves(rows: Mapping[int, Mapping[str, float]], drawn: Sequence[Path]) -> Image.Image | None:
    """Returns the newest picture of the curves if it is up to date; else draws them anew.

    It is not if values were logged after it, or if the run resumed from before it.
    """
    steps = [step for step, row in rows.items() if any(map(is_curve, row))]
    if not steps:  # a run that only measures
        return None
    if drawn and _step(drawn[-1]) == max(steps) + 1:
        with suppress(OSError, SyntaxError, ValueError):  # from Pillow for damaged files
            return picture_in(drawn[-1])
    return Image.fromarray(picture(draw_curves(rows)).pixels)


def _step(file: Path) -> int | None:
    found = _PICTURE.fullmatch(file.stem)
    return int(found[1]) if found else None


def _rank(kind: str) -> tuple[int, str]:
    """Sorts kinds of pictures: the most important first."""
    part = kind.partition("/")[0]
    known = part in _FIRST_PICTURES
    return (_FIRST_PICTURES.index(part) if known else len(_FIRST_PICTURES)), kind


def _headline(
    summary: Mapping[str, Any], environment: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[str]:
    state, values = summary.get("status", "running"), flat(settings)
    task, backbone, data = (values.get(key) for key in ("task", "backbone.name", "data.name"))
    parts = [f"{task}: {backbone} on {data}" if task else ""]
    started = str(environment.get("started", ""))[:16].replace("T", " ")
    parts += [str(state), started, str(environment.get("device", ""))]
    if _is_number(summary.get("wall_seconds")):
        parts.append(f"{summary['wall_seconds'] / 60:.1f} minutes")
    return [part for part in parts if part]


def _words(summary: Mapping[str, Any]) -> list[str]:
    """Returns the results of a run in sentences, and what speaks against them."""
    lines = [str(summary["reason"])] if summary.get("reason") else []
    lines += [*_texts(summary.get("in_words")), *_texts(summary.get("alarms"))]
    if summary.get("transductive"):
        lines.append(f"TRANSDUCTIVE: {TRANSDUCTIVE}.")
    failures = summary.get("readout_failures")
    failures = failures if isinstance(failures, Mapping) else {}
    return [*lines, *(f"{name} failed {count}x." for name, count in failures.items())]


def _texts(value: Any) -> list[str]:
    """Returns a list of texts from a file that may have been edited."""
    return [str(each) for each in value] if isinstance(value, list) else []


def _so_far(rows: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """Returns the last values of a run that is not over."""
    return last_values(rows) | ({"steps": max(rows) + 1} if rows else {})


def _numbers(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns the few numbers that matter, with their values before training."""
    found = [(name, value) for name in _NUMBERS if _is_number(value := values.get(name))]
    return [
        {
            "name": _NUMBERS[name],
            "value": _shown(value),
            "before": _shown(values.get(f"before/{name}")),
        }
        for name, value in found[:MOST_NUMBERS]
    ]


def _shown(value: Any) -> str:
    # Rounded first: values near 0, as at chance, would get too many digits.
    return format_result(round(value, 4) if _is_number(value) else None, missing="")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _results(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in summary.items()
        if "/iou/" not in name and name not in _SHOWN_ABOVE
    }


def _classes(summary: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Returns IoU by split and class, the best class first."""
    found: dict[str, dict[str, float]] = {}
    for name, value in summary.items():
        split, separator, label = name.partition("/iou/")
        if separator and _is_number(value):
            found.setdefault(split, {})[label] = value
    return {
        split: dict(sorted(ious.items(), key=lambda item: -item[1]))
        for split, ious in sorted(found.items())
    }
