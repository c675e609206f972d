"""Labels images of any size with a trained segmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from rich.progress import track

from agents.segmentation import Segmentation, protocol_of_test
from config.hparams import Hparams
from datamodules.listing import IMAGE_SUFFIXES, files_below, is_image
from datamodules.reading import UnreadableImageError, read_picture
from datamodules.transforms.segmentation import Protocol
from models.segmenter import labels_of
from utils.device import best_device
from utils.files import replacing
from utils.palette import label_image, overlay
from utils.run_folder import RunFolder
from utils.text import printable


def predict(agent: pl.LightningModule, hparams: Hparams, folder: RunFolder, images: Path) -> int:
    """Writes a palette PNG and an overlay for every image, below `predictions/` of the run.

    Args:
        agent: a segmentation, in eval mode.
        hparams: its settings; the protocol says how an image is resized.
        folder: the run.
        images: a folder, searched at any depth, or one image.

    Raises:
        ValueError: the run is no segmentation, or there is no image to be read.
        FileNotFoundError: no such file or folder.
    """
    if not isinstance(agent, Segmentation):
        raise ValueError(f"--predict {folder.name}: a run of task {hparams.task} labels nothing.")
    files, others = find_images(images)
    root = images if images.is_dir() else images.parent
    out = folder.path / "predictions" / images.resolve().stem
    protocol = protocol_of_test(hparams)
    agent.to(best_device(hparams.trainer.accelerator))
    colours = agent.colours
    unreadable: list[str] = []
    for file in track(files, "Labelling", transient=True):
        try:
            image, size, _ = read_picture(file)
        except UnreadableImageError as error:
            unreadable.append(str(error))
            continue
        labels = label(agent, protocol, image)
        # The whole name: a.jpg and a.png may lie side by side.
        relative = file.relative_to(root)
        painted = overlay(image, labels, colours)
        _save(  # of the picture's own size, also where it was reduced to be read
            label_image(labels, colours).resize(size, Image.Resampling.NEAREST),
            out / "labels" / relative.with_name(f"{relative.name}.png"),
        )
        _save(painted, out / "overlays" / relative.with_name(f"{relative.name}.jpg"))
    done = len(files) - len(unreadable)
    if not done:
        raise ValueError(f"None of {len(files)} files could be read, first: {unreadable[0]}.")
    place = printable(out)
    print(f"{done} images labelled: {place}/labels (palette PNGs), {place}/overlays.")
    for skipped, what in ((unreadable, "unreadable"), (list(map(printable, others)), "no images")):
        if skipped:
            print(f"{len(skipped)} files skipped ({what}): {', '.join(skipped[:3])}")
    return 0


def find_images(place: Path) -> tuple[list[Path], list[Path]]:
    """Lists the images at a place, and the files that are none; hidden ones count as neither.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: files are there, but no image.
    """
    if not place.exists():
        raise FileNotFoundError(f"--images {place}: there is no such file or folder.")
    found = [place] if place.is_file() else sorted(files_below(place))
    images = list(filter(is_image, found))
    if not images:
        raise ValueError(
            f"--images {place}: none of {len(found)} files is an image "
            f"({', '.join(sorted(IMAGE_SUFFIXES))})."
        )
    return images, [file for file in found if not is_image(file)]


@torch.no_grad()
def label(agent: Segmentation, protocol: Protocol, image: Image.Image) -> np.ndarray:
    """Returns the labels of an image, `(height, width)` uint8."""
    seen = protocol.image(image).to(agent.device)
    size = (image.height, image.width)
    (logits,) = agent.network.logits_at([seen], [size], inference=agent.inference)
    return labels_of(logits).cpu().numpy()


def _save(image: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as stream:
        image.save(stream, Image.registered_extensions()[file.suffix])
