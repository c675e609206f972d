"""Images with the features of a frozen backbone, computed once.

A cache lies in a folder named by a hash of everything that determines its content. It is built in a
temporary folder and moved into place when complete, so nobody ever reads half a cache. If two runs
build the same one, the first to finish wins and the other reads its files.
"""

from __future__ import annotations

import errno
import io
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import torch
from rich.progress import track
from torch import Tensor

from datamodules.digests import facts_digest
from datamodules.image_store import StoredImages, StoreWriter
from datamodules.loading import Loading
from datamodules.masked_images import Images, LabelledSample, collate
from utils.console import console
from utils.files import owner, remove_abandoned, write_atomically
from utils.text import count
from utils.weight_files import read_checkpoint

Result = TypeVar("Result")
Encode = Callable[[Tensor], Sequence[Mapping[str, Tensor]]]  # (B, 3, H, W) uint8 to B mappings

_FORMAT = 4  # since masks of 2 and 4 bits are read as numbers
_OFF = "--data.feature_cache off computes features anew in every epoch instead."


class FeatureCache:
    """Caches of a run's data sets.

    Args:
        root: folder of all caches.
        facts: what determines the features besides the images.
        encode: computes the tensors to keep.
        loading: how images are read.
    """

    def __init__(
        self,
        root: Path,
        facts: Mapping[str, Any],
        encode: Encode,
        loading: Loading,
    ) -> None:
        self.root = root
        self.facts = dict(facts)
        self.encode = encode
        self.loading = loading
        self._opened: dict[str, StoredImages] = {}

    def of(self, dataset: Images, facts: Mapping[str, Any], name: str) -> StoredImages:
        """Opens the cache of a data set, or builds it.

        Args:
            dataset: indexed by draws.
            facts: what determines its images and labels.
            name: its name in messages.

        Raises:
            ValueError: the folder cannot be written, or the disk is full.
        """
        digest = facts_digest({"format": _FORMAT, **self.facts, **facts})
        if digest not in self._opened:
            self._opened[digest] = self._open(dataset, self.root / digest, name)
        return self._opened[digest]

    def recall(self, name: str, facts: Mapping[str, Any], compute: Callable[[], Result]) -> Result:
        """Returns a stored result, or computes and stores it.

        Args:
            name: its name in messages.
            facts: everything that determines it.
            compute: returns numbers, tensors and containers of them.
        """
        file = self.root / "readouts" / f"{facts_digest({'name': name, **facts})}.pt"
        if file.exists():
            try:
                found: Result = read_checkpoint(file)
            except ValueError as error:
                console.warning("%s It is computed anew.", error)
            else:
                console.info("feature cache: %s read from %s", name, file)
                return found
        found, content = compute(), io.BytesIO()
        torch.save(found, content)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, content.getvalue())
        except OSError as error:  # not stored, but computed
            console.warning("warning: %s", error)
        return found

    def _open(self, dataset: Images, folder: Path, name: str) -> StoredImages:
        remove_abandoned(self.root.glob("*.part"))
        if folder.exists():
            try:
                found = StoredImages(folder)
            except ValueError as error:
                console.warning("feature cache: %s: it is built anew.", error)
                with _writable(folder):
                    _remove(folder)
            else:
                size = found.file.stat().st_size
                console.info("feature cache: %s %s read from %s", name, _gigabytes(size), folder)
                return found
        with _writable(folder):
            self._build(dataset, folder, name)
        return StoredImages(folder)

    def _build(self, dataset: Images, folder: Path, name: str) -> None:
        part = _beside(folder)
        self.root.mkdir(parents=True, exist_ok=True)
        part.mkdir()
        try:
            writer = StoreWriter(part)
            images = self._encoded(dataset)
            first = next(images)
            writer.add(*first)
            self._check_room(writer.written * len(dataset), len(dataset), name)
            remaining = track(images, f"Computing features of {name}", len(dataset) - 1)
            for sample, tensors in remaining:
                writer.add(sample, tensors)
            writer.close()
            try:
                part.rename(folder)
            except OSError:  # another run has built it in the meantime
                if not folder.exists():
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _encoded(self, dataset: Images) -> Iterator[tuple[LabelledSample, Mapping[str, Tensor]]]:
        for batch in self.loading.every(dataset, collate):
            samples = [
                LabelledSample(image, labels, position, ())
                for (image, labels), position in zip(
                    batch.items(), batch.indices.tolist(), strict=True
                )
            ]
            if batch.unreadable:
                samples[0] = samples[0]._replace(unreadable=batch.unreadable)
            same = len({sample.image.shape for sample in samples}) == 1
            for together in [samples] if same else [[sample] for sample in samples]:
                found = self.encode(torch.stack([sample.image for sample in together]))
                yield from zip(together, found, strict=True)

    def _check_room(self, needed: int, images: int, name: str) -> None:
        free = shutil.disk_usage(self.root).free
        console.info(
            "feature cache: %s needs about %s for %s in %s (%s free).",
            *(name, _gigabytes(needed), count(images, "image"), self.root, _gigabytes(free)),
        )
        if needed > free:
            raise OSError(errno.ENOSPC, f"{_gigabytes(needed)} needed, {_gigabytes(free)} free")


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.{uuid4().hex[:8]}{owner()}.part")


def _remove(folder: Path) -> None:
    # Renamed first, so that nobody sees half of it.
    aside = _beside(folder)
    with suppress(FileNotFoundError):  # another run was faster
        folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ValueError(
                f"--data.feature_cache: the disk of {folder.parent} is full ({error.strerror}); "
                f"nothing was kept. Give another folder, or fewer data.fixed_scales. {_OFF}"
            ) from error
        raise ValueError(
            f"--data.feature_cache: {folder.parent} cannot be written ({error}). Give another "
            f"folder. {_OFF}"
        ) from error


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
