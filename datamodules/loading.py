"""From samples to batches of uint8 micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from datamodules.image_files import Sample
from datamodules.seeding import Draw, MicroBatchSampler
from datamodules.workers import Workers, begin, start_method
from utils.chunks import chunk_sizes
from utils.distributed import num_processes, process_rank
from utils.text import count


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

    def previews(self, count: int) -> dict[str, Tensor]:
        """Returns copies of the views of the first images, `(n, 3, H, W)` uint8 each, by name.

        If views have two sizes (multi-crop), the large ones are global, the small ones local.
        """
        sides = [chunks[0].shape[-1] for chunks in self.views]
        several = len(set(sides)) > 1
        found: dict[str, Tensor] = {}
        for number, (side, chunks) in enumerate(zip(sides, self.views, strict=True)):
            kind = "global " if side == max(sides) else "local "
            name = f"{kind * several}view {number + 1}\n{side} px"
            # Copied: a slice would keep the whole batch in memory.
            few = [chunk[:count] for chunk in chunks[:count]]
            found[name] = torch.cat(few)[:count].clone()
        return found


def collate(samples: Sequence[Sample]) -> MicroBatch:
    """Stacks samples."""
    views = tuple(torch.stack(view) for view in zip(*(s.views for s in samples), strict=True))
    names = tuple(name for sample in samples for name in sample.unreadable)
    return MicroBatch(views, torch.tensor([sample.position for sample in samples]), names)


def join(parts: Sequence[MicroBatch]) -> Batch:
    """Joins micro-batches to one batch."""
    return Batch(
        tuple(list(view) for view in zip(*(part.views for part in parts), strict=True)),
        torch.cat([part.indices for part in parts]),
        tuple(name for part in parts for name in part.unreadable),
    )


class BatchLoader:
    """Groups the micro-batches of a DataLoader into batches.

    Workers prepare micro-batches, so that several workers share one large batch.

    Args:
        micro_batches: the loader.
        per_batch: micro-batches per batch.
        join: joins them to a batch.

    Attributes:
        workers: the processes that prepare micro-batches.
    """

    def __init__(
        self, micro_batches: DataLoader[Any], per_batch: int, join: Callable[[list[Any]], Any]
    ) -> None:
        self.micro_batches = micro_batches
        self.per_batch = per_batch
        self.join = join
        self.workers = Workers(micro_batches.num_workers)

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.micro_batches) // self.per_batch

    def start(self) -> Iterator[Any]:
        """Starts the processes, unless they run already, and returns their micro-batches."""
        with self.workers.starting():
            return iter(self.micro_batches)

    def stop(self) -> None:
        """Ends the processes; another pass starts new ones.

        The garbage collector would wait five seconds for each: it may close the queue through which
        torch tells a process to end before torch has done so.
        """
        loader: Any = self.micro_batches
        if loader._iterator is not None:
            loader._iterator._shutdown_workers()  # as Lightning ends those of a plain DataLoader
            loader._iterator = None

    def __iter__(self) -> Iterator[Any]:
        """Yields batches.

        Raises:
            ValueError: the data set is broken; has the message of the worker that noticed.
            WorkerKilledError: a worker was killed.
        """
        parts: list[Any] = []
        try:
            for part in self.start():
                parts.append(part)
                if len(parts) == self.per_batch:
                    yield self.join(parts)
                    parts = []
        except Exception as error:
            killed = self.workers.killed()  # before the others are ended
            self.stop()
            if isinstance(error, ValueError):
                # A worker's error arrives with its traceback as the message.
                raise ValueError(str(error).rpartition("ValueError: ")[2].strip()) from error
            # EOFError: killed while sending a tensor.
            if killed and isinstance(error, RuntimeError | EOFError):
                raise killed from error
            raise

    def state_dict(self) -> dict[str, int]:
        """Empty: the trainer's step gives the position. Tells Lightning that this can resume."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """See `state_dict`."""


def loaders_in(loaders: Any) -> list[BatchLoader]:
    """Returns the loaders of one stage of Lightning's trainer: one, a list, or none."""
    each = loaders if isinstance(loaders, list) else [loaders]
    return [loader for loader in each if isinstance(loader, BatchLoader)]


@dataclass(frozen=True)
class Loading:
    """How batches are loaded; see `DataHparams` and `TrainerHparams`."""

    batch_size: int | None  # None: `auto`, until the images are counted
    num_workers: int = 0
    seed: int = 0
    chunk_size: int | None = None
    limit_train_batches: int | None = None
    pin_memory: bool = False  # if they are copied to a GPU

    def check(self, images: int) -> int:
        """Returns the batch size, after checking that there are enough images for it.

        Raises:
            ValueError: the batch is larger than the data set, or its size is not known yet.
        """
        if self.batch_size is None:
            raise ValueError("The batch size is still to be chosen: data.batch_size is auto.")
        if self.batch_size > images:
            raise ValueError(
                f"--data.batch_size {self.batch_size} is larger than the data set: "
                f"{count(images, 'image')}. "
                + ("Lower it, or give more images." if images > 1 else "Give more images.")
            )
        return self.batch_size

    def loader(
        self,
        dataset: Sized,
        *,
        first_batch: Callable[[], int] = lambda: 0,
        collate: Callable[[list[Any]], Any] = collate,
        join: Callable[[list[Any]], Any] = join,
    ) -> BatchLoader:
        """Loads full batches only: a correlation over a shorter last batch is not comparable.

        With several training processes, each loads its part of every batch.

        Args:
            dataset: indexed by draws.
            first_batch: number of batches the run has done, see `MicroBatchSampler`. If it stays 0,
                every pass is the same.
            collate: makes a micro-batch from samples.
            join: makes a batch from micro-batches.

        Raises:
            ValueError: the batch is larger than the data set.
        """
        batch_size = self.check(len(dataset))
        batches = len(dataset) // batch_size
        if self.limit_train_batches is not None:
            batches = min(batches, self.limit_train_batches)
        parts = num_processes()
        sizes = chunk_sizes(batch_size // parts, self.chunk_size)
        sampler = MicroBatchSampler(
            len(dataset), sizes, batches, self.seed, first_batch, (process_rank(), parts)
        )
        return BatchLoader(self._data_loader(dataset, sampler, collate), len(sizes), join)

    def every(self, dataset: Sized, collate: Callable[[list[Any]], Any]) -> BatchLoader:
        """Loads every item once, in one of the training processes; all have as many batches.

        Raises:
            ValueError: fewer items than processes.
        """
        parts = num_processes()
        if len(dataset) < parts:
            raise ValueError(
                f"{count(len(dataset), 'image')} cannot be shared by {parts} processes."
            )
        draws = [(0, index) for index in range(process_rank(), len(dataset), parts)]
        wanted = -(-len(dataset) // (parts * max(1, (self.batch_size or 1) // parts)))
        shared = min(wanted, len(dataset) // parts)  # some processes have one image less
        bounds = [i * len(draws) // shared for i in range(shared + 1)]
        batches = [draws[start:end] for start, end in pairwise(bounds)]
        return BatchLoader(self._data_loader(dataset, batches, collate), 1, itemgetter(0))

    def _data_loader(
        self,
        dataset: Any,
        batches: Sampler[list[Draw]] | list[list[Draw]],
        collate: Callable[[list[Any]], Any],
    ) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=self.num_workers,
            multiprocessing_context=start_method() if self.num_workers else None,
            persistent_workers=self.num_workers > 0,
            # Not more: pinned memory holds all of them, gigabytes with many cores.
            prefetch_factor=2 if self.num_workers else None,
            pin_memory=self.pin_memory,
            # Its own generator: otherwise every epoch would draw from the model's random state.
            generator=torch.Generator(),
            worker_init_fn=begin,
        )
