"""Draws the results of `make bench`: assets/bench.png."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from utils import figures

_WORDS = {
    "barlow_twins": "Barlow Twins, 2 views of 224 px",
    "dino": "DINO, 2 + 8 crops",
    "segmentation": "segmentation, a crop of 224 px",
    "resnet18": "ResNet-18, 32 px",
    "resnet50": "ResNet-50, 224 px",
    "vit_small": "ViT-S/16, 224 px",
}
_OURS = ("ours", "here")


def main() -> None:
    """Draws both files side by side, one panel per task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("steps", type=Path)
    parser.add_argument("--out", type=Path, default=Path("assets/bench.png"))
    arguments = parser.parse_args()
    pipeline, steps = (json.loads(f.read_text()) for f in (arguments.pipeline, arguments.steps))
    panels: list[tuple[str, str, dict[str, float]]] = [
        (_WORDS[task], "ms an image, one core", each)
        for task, each in pipeline["ms_per_image"].items()
    ]
    trained: dict[str, Any] = {name: each for name, each in steps.items() if name in _WORDS}
    panels += [(_WORDS[name], "s a training step", each) for name, each in trained.items()]
    figure, axes = figures.grid(1, len(panels), cell=(2.6, 2.4))
    for axis, (title, unit, values) in zip(axes[0], panels, strict=True):
        colours = ["#1f77b4" if name in _OURS else "#bbbbbb" for name in values]
        labels = ["twinsight" if name in _OURS else name for name in values]
        bars = axis.barh(labels, list(values.values()), color=colours)
        axis.bar_label(bars, fmt="%.3g", padding=2)
        axis.set(title=title, xlabel=unit, xlim=(0, 1.4 * max(values.values())))
        axis.invert_yaxis()
        axis.grid(visible=False)
    figures.save(figure, arguments.out, dpi=110)


if __name__ == "__main__":
    main()
