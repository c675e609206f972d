"""Fills a head that remembers training images instead of being trained, and describes it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.masked_images import SegmentationBatch
from models.heads.base import Size, concatenated, size_of
from models.measures.dense_knn import PatchMemory, labelled_patches
from models.segmenter import Segmenter, pad_labels
from utils.distributed import gather_rows


@torch.no_grad()
def remember(network: Segmenter, memory: PatchMemory, images: Iterable[SegmentationBatch]) -> None:
    """Fills a memory; each of several processes reads its share, and all remember the same.

    Args:
        network: computes the features.
        memory: of its head.
        images: whole images, as the protocol shows them to the network.

    Raises:
        ValueError: all masks are void everywhere.
    """
    device = memory.features.device
    # On the CPU: a small GPU may not hold the parts and their concatenation at once.
    features, shares = [memory.features.cpu()], [memory.shares.cpu()]
    num_classes = memory.shares.shape[1]
    known: set[int] = set()
    for batch in images:
        for (image, labels), position in zip(batch.items(), batch.indices.tolist(), strict=True):
            if position in known:  # it replaces one that cannot be read
                continue
            known.add(position)
            maps = concatenated(network.encode(image[None].to(device)).maps)[0]
            seen = as_seen(labels, size_of(image), network.multiple)
            patches, classes = labelled_patches(maps, seen, num_classes)
            features.append(patches.cpu())
            shares.append(classes.cpu())
    joined = (gather_rows(torch.cat(parts).to(device)) for parts in (features, shares))
    memory.fill(*joined)


def memory_in_words(memory: PatchMemory, held_out: float | None) -> str:
    """Says how a memory labels pixels, and how well.

    Args:
        memory: a filled one.
        held_out: mIoU on held-out training images; None: there are none.
    """
    return (
        f"Nothing was trained: classes are those of the {memory.neighbours} nearest of "
        f"{len(memory):,} patches of training images"
        + ("." if held_out is None else f"; on held-out ones mIoU {held_out:.3f}.")
    )


def as_seen(labels: Tensor, size: Size, multiple: int) -> Tensor:
    """Resizes labels `(H, W)` to their image's size, and pads them as the network pads images.

    Args:
        labels: uint8.
        size: `(h, w)` of the image.
        multiple: see `Segmenter`.

    Returns:
        Nearest-neighbour labels, void in the padding.
    """
    resized = F.interpolate(labels[None, None], size, mode="nearest-exact")[0, 0]
    return pad_labels(resized, multiple)
