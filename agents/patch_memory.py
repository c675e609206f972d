"""A head that remembers training images instead of being trained: filled, and put into words."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.masked_images import SegmentationBatch
from models.heads.base import Size, concatenated
from models.measures.dense_knn import PatchMemory, labelled_patches
from models.segmenter import Segmenter, pad_labels
from utils.distributed import gather_rows


@torch.no_grad()
def remember(network: Segmenter, memory: PatchMemory, images: Iterable[SegmentationBatch]) -> None:
    """Fills a memory; several processes read their share each, and remember the same.

    Args:
        network: gives the features.
        memory: of its head.
        images: whole ones, as the protocol shows them to the network.

    Raises:
        ValueError: the masks are void all over.
    """
    device = memory.features.device
    # Parts and whole together are more than a small GPU may hold.
    features, shares = [memory.features.cpu()], [memory.shares.cpu()]
    num_classes = memory.shares.shape[1]
    known: set[int] = set()
    for batch in images:
        for (image, labels), position in zip(batch.items(), batch.indices.tolist(), strict=True):
            if position in known:  # it stands in for one that cannot be read
                continue
            known.add(position)
            maps = concatenated(network.encode(image[None].to(device)))[0]
            seen = as_seen(labels, (image.shape[-2], image.shape[-1]), network.multiple)
            patches, classes = labelled_patches(maps, seen, num_classes)
            features.append(patches.cpu())
            shares.append(classes.cpu())
    joined = (gather_rows(torch.cat(parts).to(device)) for parts in (features, shares))
    memory.fill(*joined)


def memory_in_words(memory: PatchMemory, held_out: float | None) -> str:
    """Says what a memory labels by, and how well.

    Args:
        memory: that is filled.
        held_out: mIoU on held-out training images; None where there are none.
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
        The nearest labels, and void where there is no image.
    """
    resized = F.interpolate(labels[None, None], size, mode="nearest-exact")[0, 0]
    return pad_labels(resized, multiple)
