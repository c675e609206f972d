"""report.html: a run on one page that needs no network."""

from __future__ import annotations

import base64
import html
import io
import json
import string
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer

from callbacks.learning_curves import draw as draw_curves
from utils.figures import close
from utils.logging import RunFolderLogger, read_metrics
from utils.nested import flat
from utils.run_folder import RunFolder, write_atomically

SECONDS_BETWEEN = 60
MAX_BYTES = 20_000_000
MAX_STEPS = 12
# Widths tried until the page is small enough, in pixels.
_WIDTHS = (1500, 1100, 800, 560, 400)
_TEMPLATE = Path(__file__).with_name("report.html")
_STEP = "step-"


class Report(Callback):
    """Rewrites the page at most once a minute; the trainer writes it a last time.

    Args:
        folder: of the run; everything on the page is read from it.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._written = time.monotonic()
        self._encoded: dict[tuple[Path, float, int], str] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes it when it is time."""
        if time.monotonic() - self._written > SECONDS_BETWEEN:
            for logger in trainer.loggers:
                if isinstance(logger, RunFolderLogger):
                    logger.write()
            self.write()

    def write(self) -> None:
        """Writes the page from what the folder holds now."""
        for width in _WIDTHS:
            page = self._page(width)
            if len(page.encode()) <= MAX_BYTES:
                break
        write_atomically(self.folder.path / "report.html", page)
        self._written = time.monotonic()

    def _page(self, width: int) -> str:
        summary, environment = self.folder.read_summary(), self.folder.read_environment()
        settings = yaml.safe_load(self.folder.hparams.read_text())
        template = string.Template(_TEMPLATE.read_text())
        return template.substitute(
            name=html.escape(self.folder.name),
            headline=html.escape(_headline(summary, environment, settings)),
            results=_table(_results(summary)),
            classes=_classes(summary),
            curves=self._curves(width),
            pictures="\n".join(self._pictures(width)),
            settings=_table(flat(settings)),
            environment=_table(flat(environment)),
        )

    def _curves(self, width: int) -> str:
        rows = read_metrics(self.folder.path / "metrics.csv")
        if not rows:
            return "<p>No step has been logged yet.</p>"
        figure, file = draw_curves(_thinned(rows)), io.BytesIO()
        figure.savefig(file, format="png")
        close(figure)
        return f'<img alt="learning curves" src="{data_uri(Image.open(file), width)}">'

    def _pictures(self, width: int) -> Iterator[str]:
        kinds: dict[str, list[Path]] = {}
        for file in sorted(self.folder.figures.rglob(f"{_STEP}*.png")):
            kinds.setdefault(file.parent.relative_to(self.folder.figures).as_posix(), []).append(
                file
            )
        kinds.pop("learning_curves", None)  # drawn anew above
        for kind, files in sorted(kinds.items()):
            yield _gallery(kind, [(_step(f), self._encode(f, width)) for f in evenly(files)])

    def _encode(self, file: Path, width: int) -> str:
        key = (file, file.stat().st_mtime, width)
        if key not in self._encoded:
            with Image.open(file) as image:
                self._encoded[key] = data_uri(image, width)
        return self._encoded[key]


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


def data_uri(image: Image.Image, width: int) -> str:
    """Returns an image, at most so wide, as text that a page can hold."""
    image = image.convert("RGB")
    if image.width > width:
        image = image.resize(
            (width, round(image.height * width / image.width)), Image.Resampling.LANCZOS
        )
    file = io.BytesIO()
    image.save(file, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _gallery(kind: str, pictures: list[tuple[int, str]]) -> str:
    last = len(pictures) - 1
    images = "".join(
        f'<img alt="{html.escape(kind)}, step {step}" data-step="{step}" src="{source}"'
        f"{'' if number == last else ' hidden'}>"
        for number, (step, source) in enumerate(pictures)
    )
    slider = (
        f'<label>step <output>{pictures[last][0]}</output> <input type="range" min="0" '
        f'max="{last}" value="{last}" aria-label="step of {html.escape(kind)}"></label>'
    )
    title = html.escape(kind.replace("_", " ").replace("/", " · "))
    return f'<figure id="{html.escape(kind)}"><h3>{title}</h3>{slider}{images}</figure>'


def _headline(
    summary: Mapping[str, Any], environment: Mapping[str, Any], settings: Mapping[str, Any]
) -> str:
    state = summary.get("status", "running")
    parts = [f"{settings['task']}: {settings['backbone']['name']} on {settings['data']['name']}"]
    parts += [str(state), str(environment.get("started", ""))[:16], environment.get("device", "")]
    if summary.get("transductive"):
        parts.append("TRANSDUCTIVE: training saw evaluation images")
    if summary.get("reason"):
        parts.append(str(summary["reason"]))
    parts += summary.get("alarms", [])
    return " · ".join(part for part in parts if part)


def _results(summary: Mapping[str, Any]) -> dict[str, Any]:
    shown_elsewhere = ("alarms", "reason")
    return {
        name: value
        for name, value in summary.items()
        if "/iou/" not in name and name not in shown_elsewhere
    }


def _classes(summary: Mapping[str, Any]) -> str:
    tables = []
    splits = sorted({name.partition("/iou/")[0] for name in summary if "/iou/" in name})
    for split in splits:
        start = f"{split}/iou/"
        found = {n.removeprefix(start): v for n, v in summary.items() if n.startswith(start)}
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{value:.3f}</td>"
            f'<td class="bar"><i style="width:{100 * value:.1f}%"></i></td></tr>'
            for name, value in sorted(found.items(), key=lambda item: -item[1])
        )
        caption = f"IoU by class, {html.escape(split)}"
        tables.append(f'<table class="classes"><caption>{caption}</caption>{rows}</table>')
    return f"<h2>Classes</h2>{''.join(tables)}" if tables else ""


def _table(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(_shown(value))}</td></tr>"
        for name, value in values.items()
    )
    return f"<table>{rows}</table>"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return value if isinstance(value, str) else json.dumps(value)
