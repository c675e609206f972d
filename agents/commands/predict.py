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
from utils.device import usable_device
from utils.files import make_folder, replacing, write_atomically
from utils.memory import free_unused, is_out_of_memory
from utils.palette import label_image, overlay
from utils.run_checkpoints import best_or_last
from utils.run_folder import RunFolder
from utils.text import count, printable

_SOURCE = "images.txt"  # says where the labelled images lie


class Labelled(NamedTuple):
    """The labels of an image.

    Attributes:
        labels: `(height, width)` uint8.
        confidence: the probability of each label, `(height, width)` float32.
    """

    labels: NDArray[np.uint8]
    confidence: NDArray[np.float32]


class Predictions:
    """Writes predictions into a folder: files for each image, and a table of all.

    Args:
        folder: to write to.
        classes: by label.
        colours: of every label, `(256, 3)`.

    Attributes:
        shares: rows of the table: the name of an image and the share of every class in it. Rows of
            images that were labelled earlier come before them in the file.
    """

    def __init__(self, folder: Path, classes: Sequence[str], colours: NDArray[np.uint8]) -> None:
        self.folder, self.classes, self.colours = folder, classes, colours
        self.shares: list[tuple[str, ...]] = []

    def add(self, name: Path, picture: Picture, labelled: Labelled) -> None:
        """Writes an image's labels as a palette PNG, their confidence and an overlay."""
        # The suffix stays in the name: a.jpg and a.png may lie side by side.
        image, file = picture.image, name.with_name(f"{name.name}.png")
        labels = label_image(labelled.labels, self.colours)
        sure = Image.fromarray(np.rint(255 * labelled.confidence).astype(np.uint8))
        # In the picture's full size, even if it was read at a reduced one.
        nearest, bilinear = Image.Resampling.NEAREST, Image.Resampling.BILINEAR
        _save(labels.resize(picture.size, nearest), self.folder / "labels" / file)
        _save(sure.resize(picture.size, bilinear), self.folder / "confidence" / file)
        painted = overlay(image, labelled.labels, self.colours)
        _save(painted, self.folder / "overlays" / file.with_suffix(".jpg"))
        counts = np.bincount(labelled.labels.ravel(), minlength=len(self.classes))
        shares = (f"{n / labelled.labels.size:.6f}" for n in counts)
        self.shares.append((printable(name), *shares))

    def _earlier(self, file: Path) -> list[tuple[str, ...]]:
        """Returns the rows of images that were labelled before, but not now."""
        if not file.is_file():
            return []
        rows = csv.reader(io.StringIO(file.read_text("utf-8", errors="replace"), newline=""))
        if next(rows, None) != ["image", *self.classes]:  # not as it was written
            return []
        now = {name for name, *_ in self.shares}
        return [tuple(row) for row in rows if row and row[0] not in now]

    def finish(self) -> str:
        """Writes class_shares.csv, and says where everything is."""
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

    Each gets a palette PNG, an overlay and a confidence map, in the same subfolders as the images.
    class_shares.csv has the share of every class in every image. Each source of images has a folder
    of its own, `NAME-2` if the name is taken.

    Args:
        folder: the run, a segmentation.
        hparams: its settings; the protocol says how an image is resized.
        images: see `find_pictures`.

    Raises:
        ValueError: the run is no segmentation, or no image can be read; see also `trained_agent`.
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
    """Says why an image is left out; None if the error does not concern this image only."""
    if is_out_of_memory(error):
        return "does not fit into memory"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return "its output would have too long a name"
    return None


def _folder_for(found: Found, place: Path) -> Path:
    """Returns the output folder of a source of images, which no other source shares."""
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
    # k-NN heads give shares already.
    shares = logits.softmax(0) if agent.memory is None else logits
    return Labelled(labels_of(logits).cpu().numpy(), shares.amax(0).clamp(0, 1).cpu().numpy())


def _save(image: Image.Image, file: Path) -> None:
    make_folder(file.parent)
    with replacing(file) as stream:
        image.save(stream, Image.registered_extensions()[file.suffix])
