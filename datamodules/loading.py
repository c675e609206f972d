"""From image files to batches of uint8 micro-batches."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.seeding import Draw, MicroBatchSampler, seeded
from models.chunking import chunk_sizes

Views = Callable[[Image.Image], tuple[Tensor, ...]]

# What Pillow raises for files it cannot read; SyntaxError for some broken PNGs.
UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError)
# So many files in a row unreadable: not a bad file, a bad folder.
_MAX_SKIPS = 25


class Sample(NamedTuple):
    """One image: its views `(3, H, W)` uint8, its position, and files skipped to get at it."""

    views: tuple[Tensor, ...]
    position: int
    unreadable: tuple[str, ...]


class MicroBatch(NamedTuple):
    """n images: each view `(n, 3, H, W)` uint8, indices `(n,)`, names of unreadable files."""

    views: tuple[Tensor, ...]
    indices: Tensor
    unreadable: tuple[str, ...]


@dataclass  # not frozen: Lightning rebuilds batches to convert their precision
class Batch:
    """N images as they reach the agent.

    Attributes:
        views: for each view its micro-batches `(n, 3, H, W)` uint8, n summing to N.
        indices: `(N,)` positions in the data set.
        unreadable: names of files that were skipped.
    """

    views: tuple[list[Tensor], ...]
    indices: Tensor
    unreadable: tuple[str, ...]

    def __len__(self) -> int:
        """N."""
        return len(self.indices)


class ImageFiles(Dataset[Sample]):
    """Images as views. A file that cannot be read is replaced by the next one, and named.

    Args:
        files: image files.
        views: from the image as stored, in RGB, to its views.
        seed: makes the views a function of (seed, epoch, index).
    """

    def __init__(self, files: Sequence[Path], views: Views, seed: int) -> None:
        self.files = list(files)
        self.views = views
        self.seed = seed

    def __len__(self) -> int:
        """Number of files."""
        return len(self.files)

    def __getitem__(self, draw: Draw) -> Sample:
        """Reads image `index` as seen in `epoch`.

        Raises:
            ValueError: many files in a row are unreadable.
        """
        epoch, index = draw
        unreadable: list[str] = []
        for offset in range(min(_MAX_SKIPS, len(self.files))):
            position = (index + offset) % len(self.files)
            try:
                image = read_rgb(self.files[position])
            except UNREADABLE as error:
                unreadable.append(f"{self.files[position]} ({error})")
                continue
            with seeded(self.seed, epoch, index):
                return Sample(self.views(image), position, tuple(unreadable))
        raise ValueError(
            f"{len(unreadable)} images in a row cannot be read, the first: {unreadable[0]}. "
            "Is the data set complete, and --data.root right?"
        )


def read_rgb(file: Path) -> Image.Image:
    """Decodes an image; one of `UNREADABLE` is raised when that fails."""
    with Image.open(file) as opened:
        return opened.convert("RGB")


def collate(samples: Sequence[Sample]) -> MicroBatch:
    """Stacks samples."""
    views = tuple(torch.stack(view) for view in zip(*(s.views for s in samples), strict=True))
    names = tuple(name for sample in samples for name in sample.unreadable)
    return MicroBatch(views, torch.tensor([sample.position for sample in samples]), names)


class BatchLoader:
    """Groups the micro-batches of a DataLoader into batches.

    Workers prepare micro-batches, so that several share one large batch.
    """

    def __init__(self, micro_batches: DataLoader[Sample], per_batch: int) -> None:
        self.micro_batches = micro_batches
        self.per_batch = per_batch

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.micro_batches) // self.per_batch

    def __iter__(self) -> Iterator[Batch]:
        """Yields batches."""
        parts: list[MicroBatch] = []
        for part in self.micro_batches:
            parts.append(part)
            if len(parts) == self.per_batch:
                yield Batch(
                    tuple(list(view) for view in zip(*(p.views for p in parts), strict=True)),
                    torch.cat([p.indices for p in parts]),
                    tuple(name for p in parts for name in p.unreadable),
                )
                parts = []

    def state_dict(self) -> dict[str, int]:
        """Nothing: the position follows from the trainer's step. Tells Lightning it can resume."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """See `state_dict`."""


def _ignore_interrupts(_: int) -> None:
    # Ctrl-C reaches the whole process group; the main process finishes its step and saves first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True)
class Loading:
    """How batches are loaded; see `DataHparams` and `TrainerHparams`."""

    batch_size: int
    num_workers: int = 0
    seed: int = 0
    chunk_size: int | None = None
    limit_train_batches: int | None = None

    def loader(
        self,
        dataset: ImageFiles,
        *,
        shuffle: bool,
        first_batch: Callable[[], int] = lambda: 0,
    ) -> BatchLoader:
        """Loads full batches only: a short last batch would be a different correlation.

        Args:
            dataset: the images.
            shuffle: training order; else file order.
            first_batch: batches of the run that are already done, see `MicroBatchSampler`.

        Raises:
            ValueError: the batch is larger than the data set.
        """
        if self.batch_size > len(dataset):
            raise ValueError(
                f"--data.batch_size {self.batch_size} is larger than the data set: "
                f"{len(dataset)} images. Lower it, or give more images."
            )
        batches = len(dataset) // self.batch_size
        if shuffle and self.limit_train_batches is not None:
            batches = min(batches, self.limit_train_batches)
        sizes = chunk_sizes(self.batch_size, self.chunk_size)
        sampler = MicroBatchSampler(len(dataset), sizes, batches, self.seed, shuffle, first_batch)
        loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            prefetch_factor=4 if self.num_workers else None,
            pin_memory=torch.cuda.is_available(),
            # Its own generator: otherwise every epoch takes a draw from the model's random state.
            generator=torch.Generator(),
            worker_init_fn=_ignore_interrupts,
        )
        return BatchLoader(loader, len(sizes))
