"""Randomness of the data path: every draw is a function of (seed, epoch, index).

That makes results independent of the number of workers, of chunking and of interruptions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import Sampler

Draw = tuple[int, int]  # (epoch, index of the image)


def mix(*key: int) -> int:
    """Hashes whole numbers into one 64-bit seed (NumPy's SeedSequence)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def generator(*key: int) -> torch.Generator:
    """Returns a generator on the CPU whose draws are a function of `key`."""
    return torch.Generator().manual_seed(mix(*key))


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Makes torch's CPU draws a function of `key` inside, and leaves no trace outside."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed the GPU as well.
        torch.default_generator.manual_seed(mix(*key))
        yield


class MicroBatchSampler(Sampler[list[Draw]]):
    """Yields the draws of one micro-batch after the other, starting at any batch of the run.

    With n batches per epoch, batch b of a run is number b % n of epoch b // n; its images are a
    slice of that epoch's permutation. An iterator that starts at b therefore continues an
    interrupted epoch exactly.

    Args:
        num_images: size of the data set.
        sizes: number of images in each micro-batch of this process's part of a batch.
        batches_per_epoch: n.
        seed: seed of the permutations.
        first_batch: returns b; called at the start of every iteration.
        part: number of this process's part of every batch, and the number of parts.
    """

    def __init__(
        self,
        num_images: int,
        sizes: list[int],
        batches_per_epoch: int,
        seed: int,
        first_batch: Callable[[], int],
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.num_images = num_images
        self.sizes = sizes
        self.batches_per_epoch = batches_per_epoch
        self.seed = seed
        self.first_batch = first_batch
        self.part = part

    def __len__(self) -> int:
        """Micro-batches per epoch."""
        return self.batches_per_epoch * len(self.sizes)

    def __iter__(self) -> Iterator[list[Draw]]:
        """Yields the rest of the epoch that `first_batch()` lies in."""
        epoch, position = divmod(self.first_batch(), self.batches_per_epoch)
        order = self.order(epoch)
        for batch in range(position, self.batches_per_epoch):
            number, parts = self.part
            start = (batch * parts + number) * sum(self.sizes)
            for size in self.sizes:
                yield [(epoch, index) for index in order[start : start + size]]
                start += size

    def order(self, epoch: int) -> list[int]:
        """The epoch's permutation of all images.

        Never the order of the files, which folders often sort by class: a batch of a single class
        would not be comparable with those of training where a loss depends on the whole batch.
        """
        draws = generator(self.seed, epoch)
        return torch.randperm(self.num_images, generator=draws).tolist()
