"""Labels images and videos of any size with a trained segmentation."""

from __future__ import annotations

import csv
import errno
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from agents.commands.pictures import Found, find_pictures
from agents.commands.trained import trained_agent
from agents.protocols import protocol_of_test
from agents.segmentation import Segmentation
from config.hparams import Hparams
from datamodules.first_look import warn_of_several
from datamodules.listing import is_image
from datamodules.reading import Picture
from datamodules.transforms.segmentation import Protocol
from models.segmenter import labels_of
from utils.checkpoint_io import best_or_last
from utils.device import usable_device
from utils.files import make_folder, replacing, write_atomically
from utils.memory import free_unused, is_out_of_memory
from utils.palette import label_image, overlay
from utils.run_folder import RunFolder
from utils.text import count, printable

_SOURCE = "images.txt"  # says where the labelled images lie


class Labelled(NamedTuple):
    """An image that has been labelled.

    Attributes:
        labels: `(height, width)` uint8.
        confidence: the probability of each of them, `(height, width)` float32.
    """

    labels: NDArray[np.uint8]
    confidence: NDArray[np.float32]


class Predictions:
    """The folder of images that have been labelled: what is written of each, and of all.

    Args:
        folder: to write to.
        classes: by label.
        colours: of every label, `(256, 3)`.

    Attributes:
        shares: the share of every class in every image, a row an image, which begins with its name;
            in the file after those of images that lie there from before.
    """

    def __init__(self, folder: Path, classes: Sequence[str], colours: NDArray[np.uint8]) -> None:
        self.folder, self.classes, self.colours = folder, classes, colours
        self.shares: list[tuple[str, ...]] = []

    def add(self, name: Path, picture: Picture, labelled: Labelled) -> None:
        """Writes what an image was labelled as: a palette PNG, its confidence and an overlay."""
        # The whole name: a.jpg and a.png may lie side by side.
        image, file = picture.image, name.with_name(f"{name.name}.png")
        labels = label_image(labelled.labels, self.colours)
        sure = Image.fromarray(np.rint(255 * labelled.confidence).astype(np.uint8))
        # Of the picture's own size, also where it was reduced to be read.
        nearest, bilinear = Image.Resampling.NEAREST, Image.Resampling.BILINEAR
        _save(labels.resize(picture.size, nearest), self.folder / "labels" / file)
        _save(sure.resize(picture.size, bilinear), self.folder / "confidence" / file)
        painted = overlay(image, labelled.labels, self.colours)
        _save(painted, self.folder / "overlays" / file.with_suffix(".jpg"))
        counts = np.bincount(labelled.labels.ravel(), minlength=len(self.classes))
        shares = (f"{n / labelled.labels.size:.6f}" for n in counts)
        self.shares.append((printable(name), *shares))

    def _earlier(self, file: Path) -> list[tuple[str, ...]]:
        """Returns the rows of images that were labelled before, and not now."""
        if not file.is_file():
            return []
        rows = csv.reader(io.StringIO(file.read_text("utf-8", errors="replace"), newline=""))
        if next(rows, None) != ["image", *self.classes]:  # not as it was written
            return []
        now = {name for name, *_ in self.shares}
        return [tuple(row) for row in rows if row and row[0] not in now]

    def finish(self) -> str:
        """Writes class_shares.csv, and says what lies where."""
        table, place = io.StringIO(), printable(self.folder)
        file = self.folder / "class_shares.csv"
        rows = [("image", *self.classes), *self._earlier(file), *self.shares]
        csv.writer(table, lineterminator="\n").writerows(rows)
        write_atomically(file, table.getvalue())
        return (
            f"{count(len(self.shares), 'image')} labelled: {place}/labels (palette PNGs), "
            f"{place}/overlays, {place}/confidence (white: sure), {place}/class_shares.csv."
        )


def predict(folder: RunFolder, hparams: Hparams, images: Sequence[str]) -> int:
    """Labels images and the frames of videos with a run's best weights, below its `predictions/`.

    For each a palette PNG, an overlay and its confidence, in the folders the images lie in; and
    class_shares.csv, the share of every class in every image. Images of another place go to a
    folder of their own, `NAME-2` where the name has been used.

    Args:
        folder: the run, a segmentation.
        hparams: its settings; the protocol says how an image is resized.
        images: see `find_pictures`.

    Raises:
        ValueError: the run is no segmentation, or there is no image to be read; and see
            `trained_agent`.
        FileNotFoundError: no such file or folder.
    """
    agent, hparams, _ = trained_agent(folder, hparams, best_or_last(folder))
    if not isinstance(agent, Segmentation):
        raise ValueError(f"--predict {folder.name}: a run of task {hparams.task} labels nothing.")
    found = find_pictures(images, folder.path)
    out = _folder_for(found, folder.path / "predictions")
    warn_of_several([file for file in found.files if is_image(file)], "the images")
    predictions = Predictions(out, agent.classes, agent.colours)
    protocol = protocol_of_test(hparams)
    agent.to(usable_device(hparams.trainer.accelerator))
    unreadable: list[str] = []
    pictures = found.pictures(unreadable)
    for name, picture in track(pictures, "Labelling", total=found.expected(), transient=True):
        try:
            predictions.add(name, picture, label(agent, protocol, picture.image))
        except Exception as error:
            if (why := _left_out_for(error)) is None:
                raise
            unreadable.append(f"{printable(name)} ({why})")
            free_unused(agent.device)
    if not predictions.shares:
        raise ValueError(
            f"None of {count(len(found.files), 'file')} could be read, first: {unreadable[0]}."
        )
    print(predictions.finish())
    others = list(map(printable, found.others))
    for skipped, what in ((unreadable, "unreadable"), (others, "no images")):
        if skipped:
            print(f"{count(len(skipped), 'file')} skipped ({what}): {', '.join(skipped[:3])}")
    return 0


def _left_out_for(error: Exception) -> str | None:
    """Says why an image is left out; None where the error is not the image's alone."""
    if is_out_of_memory(error):
        return "does not fit into memory"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return "what is written of it has too long a name"
    return None


def _folder_for(found: Found, place: Path) -> Path:
    """Returns a folder of its own for all that lies in one place, whatever that is called."""
    source = printable(found.root.resolve())
    for number in itertools.count(1):
        out = place / (found.name if number == 1 else f"{found.name}-{number}")
        if not out.exists():
            make_folder(out)
            write_atomically(out / _SOURCE, source)
        if (out / _SOURCE).is_file() and (out / _SOURCE).read_text("utf-8") == source:
            break
    return out


@torch.no_grad()
def label(agent: Segmentation, protocol: Protocol, image: Image.Image) -> Labelled:
    """Labels an image at its own size.

    Args:
        agent: in eval mode.
        protocol: says how the image is resized.
        image: in RGB.
    """
    seen = protocol.image(image).to(agent.device)
    size = (image.height, image.width)
    (logits,) = agent.network.logits_at([seen], [size], inference=agent.inference)
    # What a memory gives are shares already.
    shares = logits.softmax(0) if agent.memory is None else logits
    return Labelled(labels_of(logits).cpu().numpy(), shares.amax(0).clamp(0, 1).cpu().numpy())


def _save(image: Image.Image, file: Path) -> None:
    make_folder(file.parent)
    with replacing(file) as stream:
        image.save(stream, Image.registered_extensions()[file.suffix])
