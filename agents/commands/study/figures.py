"""Figures of several runs side by side, redrawn from the arrays behind their pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure as Picture
from numpy.typing import NDArray

from agents.commands.study.rows import FIGURES, Figure
from agents.commands.study.runs import Study
from callbacks.attention_maps import paint_masks
from callbacks.effective_receptive_field import radius
from callbacks.segmentation_predictions import name_colours
from models.attention import mass_mask
from utils import figures
from utils.imports import load
from utils.palette import VOID, palette
from utils.run_folder import RunFolder

Arrays = dict[str, NDArray[Any]]
Folders = tuple[str, Sequence[RunFolder]]  # label of a row, and folders of its runs
_MOST_IMAGES = 6


def study_figure(study: Study, figure: Figure) -> Picture | None:
    """Draws a figure of a study from its finished runs; None while there is nothing to draw."""
    rows = {row.name: row for row in study.rows}
    found: list[Folders] = []
    for name, label in figure.rows.items():
        folders = [study.folder_of(run.name) for run in study.of(rows[name])]
        found.append((label, [folder for folder in folders if folder.finished]))
    draw: Callable[[Sequence[Folders], str], Picture | None] = load(FIGURES[figure.picture])
    return draw(found, figure.title)


def _side_by_side(
    draw: Callable[[Sequence[tuple[str, Arrays]], str], Picture], *kinds: str
) -> Callable[[Sequence[Folders], str], Picture | None]:
    """Returns a function that draws one column per row, from the first seed with such a picture.

    Args:
        draw: takes label and arrays of each row, and a title.
        kinds: of pictures, best first.
    """

    def drawn(rows: Sequence[Folders], title: str) -> Picture | None:
        for kind in kinds:  # the same for all rows: splits show different images
            found: list[tuple[str, Arrays]] = []
            for label, folders in rows:
                every = (_newest(folder, kind) for folder in folders)
                arrays = next((each for each in every if each is not None), None)
                if arrays is not None:
                    found.append((label, arrays))
            if found:
                return draw(found, title)
        return None

    return drawn


def _newest(folder: RunFolder, kind: str) -> Arrays | None:
    # Of several blocks the last one.
    for place in sorted(folder.figures.glob(kind), reverse=True):
        arrays = folder.newest_arrays(place.relative_to(folder.figures).as_posix())
        if arrays is not None:
            return arrays
    return None


def _matrices(found: Sequence[tuple[str, Arrays]], title: str) -> Picture:
    figure, axes = figures.grid(1, len(found), cell=(3.6, 3.4), title=title)
    for axis, (label, arrays) in zip(axes[0], found, strict=True):
        matrix = arrays["matrix"].astype(np.float32)
        off = matrix[~np.eye(len(matrix), dtype=bool)]
        image = figures.show_image(axis, matrix, cmap=figures.CORRELATION, vmin=-1, vmax=1)
        axis.set_title(figures.name(label))
        axis.set_xlabel(
            f"D = {len(matrix)}, N = {int(arrays['samples'])}\n"
            f"diagonal {matrix.diagonal().mean():z.2f}, off-diagonal RMS "
            f"{np.sqrt((off**2).mean()):.2f}",
            fontsize=7,
        )
    figure.colorbar(image, ax=axes, shrink=0.7, label="correlation")
    return figure


def _attention(found: Sequence[tuple[str, Arrays]], title: str) -> Picture:
    count = min(_MOST_IMAGES, *(len(arrays["images"]) for _, arrays in found))
    figure, sheet = figures.sheet(count, len(found) + 1, 1.9, title)
    sheet.above(0, "image")
    for column, (label, arrays) in enumerate(found, start=1):
        height, width = arrays["maps"].shape[-2:]
        words = f"{figures.name(label)}\n{height} x {width} patches"
        sheet.above(column, words, fontsize=8)
        for row in range(count):
            image = arrays["images"][row].transpose(1, 2, 0)
            maps = torch.from_numpy(arrays["maps"][row].astype(np.float32))
            masks = mass_mask(maps, float(arrays["mass"]))[None].float()
            masks = torch.nn.functional.interpolate(masks, size=image.shape[:2])[0].bool()
            sheet.show(row, column, paint_masks(image, masks.numpy()))
    for row in range(count):
        sheet.show(row, 0, found[0][1]["images"][row].transpose(1, 2, 0))
    mass = float(found[0][1]["mass"])
    sheet.caption(f"{mass:.0%} of the attention of every head, a colour each")
    return figure


def _predictions(found: Sequence[tuple[str, Arrays]], title: str) -> Picture:
    names = tuple(map(str, found[0][1]["names"]))
    # Runs of earlier versions saved no colours.
    colours, present = found[0][1].get("colours", palette(names)), set[int]()
    kept = (sum(key.startswith("image-") for key in arrays) for _, arrays in found)
    count = min(_MOST_IMAGES, *kept)
    figure, axes = figures.grid(count, len(found) + 2, cell=(1.9, 1.55), title=title)
    for row in range(count):
        first = found[0][1]
        truth = first[f"labels-{row}"]
        figures.show_image(axes[row, 0], first[f"image-{row}"].transpose(1, 2, 0), aspect="auto")
        axes[row, 0].set_box_aspect(truth.shape[0] / truth.shape[1])
        figures.show_image(axes[row, 1], colours[truth])
        present |= set(np.unique(truth).tolist()) - {VOID}
        for axis, (_, arrays) in zip(axes[row, 2:], found, strict=True):
            guess, valid = arrays[f"prediction-{row}"], arrays[f"labels-{row}"] != VOID
            right = (guess == arrays[f"labels-{row}"])[valid].mean() if valid.any() else 0.0
            figures.show_image(axis, colours[guess])
            axis.set_xlabel(f"{right:.0%} right", fontsize=7)
            present |= set(np.unique(guess).tolist())
    for axis, label in zip(axes[0], ("image", "truth", *(f[0] for f in found)), strict=True):
        axis.set_title(figures.name(label), fontsize=8)
    name_colours(figure, names, present, colours)
    return figure


def _receptive_fields(found: Sequence[tuple[str, Arrays]], title: str) -> Picture:
    figure, axes = figures.grid(1, len(found), cell=(2.7, 3.0), title=title)
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    for axis, (label, arrays) in zip(axes[0], found, strict=True):
        layer, field = list(arrays.items())[-1]
        figures.show_image(axis, field / max(field.max(), 1e-30), cmap="magma", norm=norm)
        axis.set_title(figures.name(label))
        side = field.shape[0]
        pixels = radius(torch.from_numpy(field))
        axis.set_xlabel(f"{layer}, {side} px\nradius {pixels:.1f} px", fontsize=7)
    figure.colorbar(
        ScalarMappable(norm, "magma"), ax=axes, shrink=0.75, label="|gradient| / maximum"
    )
    return figure


matrices = _side_by_side(_matrices, "cross_correlation/train")
attention = _side_by_side(_attention, "attention_maps/val/*", "attention_maps/train/*")
predictions = _side_by_side(
    _predictions, "segmentation_predictions/test", "segmentation_predictions/val"
)
receptive_fields = _side_by_side(_receptive_fields, "effective_receptive_field")
