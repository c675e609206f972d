"""Images with what a frozen backbone says of them, in one memory-mapped file.

A cache lies in a folder named by a hash of everything its content follows from. It is built beside
its final place and moved there when it is whole: there is never half a cache, and of two runs that
build the same one the first to finish wins.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.fixed_views import Images
from datamodules.loading import Loading
from datamodules.seeding import Draw
from utils.console import console

Encode = Callable[[Tensor], Sequence[Mapping[str, Tensor]]]  # (B, 3, H, W) uint8 to one for each

_FORMAT = 1
_ALIGNMENT = 64
_OFF = "--data.feature_cache off computes features anew in every epoch instead."


class Sample(Protocol):
    """What is cached: an image `(3, h, w)`, its labels `(H, W)` and where they come from."""

    image: Tensor
    labels: Tensor
    position: int
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """Where one image lies.

    Attributes:
        layout: number of the layout of its tensors.
        offset: bytes from the start of the file.
        checksum: CRC-32 of its bytes.
        position, unreadable: see `Sample`.
    """

    layout: int
    offset: int
    checksum: int
    position: int
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class Field:
    """One tensor of an image: name, NumPy type, shape, and bytes from the start of the image."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


class CachedImages(Dataset[Any]):
    """A cache that is there and whole, indexed like the data set it was built from.

    Args:
        folder: holds `index.json` and `data.bin`.
        sample: makes an item of image, labels, position, unreadable files and stored tensors.

    Raises:
        ValueError: it is damaged.
    """

    def __init__(self, folder: Path, sample: Callable[..., Any]) -> None:
        self.file = folder / "data.bin"
        self.sample = sample
        try:
            index = json.loads((folder / "index.json").read_text())
            self.layouts = [
                [Field(f["name"], f["dtype"], tuple(f["shape"]), f["offset"]) for f in layout]
                for layout in index["layouts"]
            ]
            self.entries = [
                Entry(**entry | {"unreadable": tuple(entry["unreadable"])})
                for entry in index["entries"]
            ]
            sound = all(self._checksum(entry) == entry.checksum for entry in self.entries)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder} is damaged ({error})") from error
        if not sound:
            raise ValueError(f"{folder} is damaged (checksum)")

    @cached_property
    def _bytes(self) -> NDArray[np.uint8]:
        return np.memmap(self.file, np.uint8, "r")

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the map of the file to each process."""
        return {name: value for name, value in vars(self).items() if name != "_bytes"}

    def _checksum(self, entry: Entry) -> int:
        return zlib.crc32(self._blob(entry).data)

    def _blob(self, entry: Entry) -> NDArray[np.uint8]:
        size = _size(self.layouts[entry.layout])
        return self._bytes[entry.offset : entry.offset + size]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.entries)

    def __getitem__(self, draw: Draw) -> Any:
        """Reads image `index`; the epoch changes nothing."""
        entry = self.entries[draw[1]]
        blob = np.array(self._blob(entry))
        tensors = {}
        for field in self.layouts[entry.layout]:
            kind = np.dtype(field.dtype)
            count = int(np.prod(field.shape, dtype=np.int64)) * kind.itemsize
            flat = blob[field.offset : field.offset + count].view(kind)
            tensors[field.name] = torch.from_numpy(flat.reshape(field.shape))
        image, labels = tensors.pop("image"), tensors.pop("labels")
        return self.sample(image, labels, entry.position, entry.unreadable, tensors)


class FeatureCache:
    """Caches of a run's data sets.

    Args:
        root: folder of all caches.
        facts: what the features follow from, beside the images.
        encode: computes the tensors to keep.
        loading: how images are read.
        collate: makes a batch of them, which gives them back with `items()`.
        sample: see `CachedImages`.
    """

    def __init__(
        self,
        root: Path,
        facts: Mapping[str, Any],
        encode: Encode,
        loading: Loading,
        collate: Callable[[list[Any]], Any],
        sample: Callable[..., Any],
    ) -> None:
        self.root = root
        self.facts = dict(facts)
        self.encode = encode
        self.loading = loading
        self.collate = collate
        self.sample = sample
        self._opened: dict[str, CachedImages] = {}

    def of(self, dataset: Images, facts: Mapping[str, Any], name: str) -> CachedImages:
        """Opens the cache of a data set, or builds it.

        Args:
            dataset: indexed by draws.
            facts: what its images and labels follow from.
            name: what to call it.

        Raises:
            ValueError: the folder cannot be written, or there is not enough room.
        """
        everything = {"format": _FORMAT, **self.facts, **facts}
        digest = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:20]
        if digest not in self._opened:
            self._opened[digest] = self._open(dataset, self.root / digest, name)
        return self._opened[digest]

    def _open(self, dataset: Images, folder: Path, name: str) -> CachedImages:
        if folder.exists():
            try:
                found = CachedImages(folder, self.sample)
            except ValueError as error:
                console.warning("feature cache: %s: it is built anew.", error)
            else:
                size = found.file.stat().st_size
                console.info("feature cache: %s %s read from %s", name, _gigabytes(size), folder)
                return found
        with _writable(folder):
            self._build(dataset, folder, name)
        return CachedImages(folder, self.sample)

    def _build(self, dataset: Images, folder: Path, name: str) -> None:
        owner = f"{socket.gethostname()}-{os.getpid()}"
        part = folder.with_name(f"{folder.name}.{uuid4().hex[:8]}.{owner}.part")
        self.root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(self.root)
        part.mkdir()
        try:
            writer = _Writer(part)
            images = self._encoded(dataset)
            first = next(images)
            writer.add(*first)
            self._check_room(writer.written * len(dataset), len(dataset), name)
            remaining = track(images, f"Computing features of {name}", len(dataset) - 1)
            for sample, tensors in remaining:
                writer.add(sample, tensors)
            writer.close()
            if folder.exists():  # damaged, or finished by another run in the meantime
                folder.rename(part / "replaced")
            part.rename(folder)
            shutil.rmtree(folder / "replaced", ignore_errors=True)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _encoded(self, dataset: Images) -> Iterator[tuple[Sample, Mapping[str, Tensor]]]:
        for batch in self.loading.every(dataset, self.collate):
            samples = [
                self.sample(image, labels, position, (), None)
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

    def _check_room(self, needed: int, count: int, name: str) -> None:
        free = shutil.disk_usage(self.root).free
        console.info(
            "feature cache: %s needs about %s for %d images in %s (%s free).",
            *(name, _gigabytes(needed), count, self.root, _gigabytes(free)),
        )
        if needed > free:
            raise OSError(errno.ENOSPC, f"{_gigabytes(needed)} needed, {_gigabytes(free)} free")


class _Writer:
    """Appends images to `data.bin` and writes `index.json` at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stream = (folder / "data.bin").open("wb")
        self.written = 0
        self.layouts: list[list[Field]] = []
        self.entries: list[Entry] = []

    def add(self, sample: Sample, tensors: Mapping[str, Tensor]) -> None:
        arrays = {
            name: value.contiguous().cpu().numpy()
            for name, value in {"image": sample.image, "labels": sample.labels, **tensors}.items()
        }
        layout, blob = [], bytearray()
        for name, array in arrays.items():
            layout.append(Field(name, array.dtype.name, array.shape, len(blob)))
            blob += array.tobytes()
            blob += bytes(-len(blob) % _ALIGNMENT)
        if layout not in self.layouts:
            self.layouts.append(layout)
        number = self.layouts.index(layout)
        blob = blob[: _size(layout)]
        self.entries.append(
            Entry(number, self.written, zlib.crc32(blob), sample.position, sample.unreadable)
        )
        blob += bytes(-len(blob) % _ALIGNMENT)
        self.stream.write(blob)
        self.written += len(blob)

    def close(self) -> None:
        self.stream.close()
        index = {
            "layouts": [[asdict(field) for field in layout] for layout in self.layouts],
            "entries": [asdict(entry) for entry in self.entries],
        }
        (self.folder / "index.json").write_text(json.dumps(index))


def file_facts(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Returns name, size and time of change of files: another content is another cache."""
    stats = [(file, file.stat()) for file in files]
    return [(file.name, stat.st_size, stat.st_mtime_ns) for file, stat in stats]


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Returns a hash of a state dict."""
    digest = hashlib.sha256()
    for name, value in state.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _size(layout: Sequence[Field]) -> int:
    last = layout[-1]
    count = int(np.prod(last.shape, dtype=np.int64))
    return last.offset + count * np.dtype(last.dtype).itemsize


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


def _remove_abandoned(root: Path) -> None:
    # What a killed process of this machine left behind.
    for part in root.glob(f"*.{socket.gethostname()}-*.part"):
        process = int(part.name.removesuffix(".part").rpartition("-")[2])
        if not Path(f"/proc/{process}").exists() and Path("/proc").exists():
            shutil.rmtree(part, ignore_errors=True)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
