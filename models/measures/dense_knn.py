"""Segmentation by the nearest patches of labelled images, without any training.

Dense k-NN retrieval ("Hummingbird", Balažević et al. 2023, section 3): a memory of L2-normalised
patch features, each with the shares of the classes among its pixels. A patch of another image gets
the mean shares of its k nearest neighbours, weighted by softmax(cosine / T). The paper searches
approximately in a sample of patches; here the search is exact and the memory complete.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.measures.attention_quality import pixel_counts
from models.measures.nearest import nearest
from models.precision import unrounded_factors

NEAREST, TEMPERATURE = 30, 0.02  # the paper's
_SIMILARITIES_AT_ONCE, _ON_A_GPU = 2**24, 2**27  # 64 and 512 MiB


class PatchMemory(nn.Module):
    """Patches of labelled images; empty until it is filled or loaded.

    Args:
        width: D of the features.
        num_classes: C.
        k: number of neighbours; all patches if there are fewer.
        temperature: a neighbour's shares weigh exp(cosine / temperature).
        at_once: number of similarities, or shares of neighbours, to hold at a time, at least those
            of one patch; affects only the memory used. None: a default for the device.

    Attributes:
        features: `(N, D)` float32, of norm 1.
        shares: `(N, C)` float32, summing to 1.
    """

    features: Tensor
    shares: Tensor

    def __init__(
        self,
        width: int,
        num_classes: int,
        k: int = NEAREST,
        temperature: float = TEMPERATURE,
        at_once: int | None = None,
    ) -> None:
        super().__init__()
        self.k = k
        self.temperature = temperature
        self.at_once = at_once
        self.register_buffer("features", torch.empty(0, width))
        self.register_buffer("shares", torch.empty(0, num_classes))

    def __len__(self) -> int:
        """N."""
        return len(self.features)

    @property
    def neighbours(self) -> int:
        """Number of neighbours: k, or the whole memory if that is smaller."""
        return min(self.k, len(self))

    def fill(self, features: Tensor, shares: Tensor) -> None:
        """Replaces the patches in memory.

        Args:
            features: `(N, D)`, normalised here.
            shares: `(N, C)`, see `labelled_patches`.

        Raises:
            ValueError: there are no patches.
        """
        if not len(features):
            raise ValueError(
                "dense k-NN: no patch of the labelled training images has a class: their masks "
                "are void all over, or there are no images."
            )
        device = self.features.device
        self.features = F.normalize(features.float(), dim=1).to(device)
        self.shares = shares.float().to(device)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # Resized to the number of patches in the checkpoint.
        for name in ("features", "shares"):
            saved, own = state_dict.get(prefix + name), getattr(self, name)
            if saved is not None:
                setattr(self, name, own.new_empty(len(saved), own.shape[1]))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def forward(self, queries: Tensor) -> Tensor:
        """Returns the shares of the classes `(M, C)` float32 of patches `(M, D)`, summing to 1.

        If several patches tie for the last of the k places, any of them may count.

        Raises:
            ValueError: the memory is empty.
        """
        if not len(self):
            raise ValueError("dense k-NN: nothing is remembered yet.")
        suits = _ON_A_GPU if queries.device.type == "cuda" else _SIMILARITIES_AT_ONCE
        at_once = self.at_once or suits
        # The shares of the neighbours, (m, k, C), may take more memory than the similarities.
        k = self.neighbours
        rows = max(1, at_once // max(len(self), k * self.shares.shape[1]))
        found = []
        features, shares = self.features.float(), self.shares.float()
        for some in F.normalize(queries.float(), dim=1).split(rows):
            cosines, places = nearest(some, features, k)  # (m, k)
            weights = (cosines / self.temperature).softmax(1)
            with unrounded_factors(queries.device):
                found.append((weights[:, None] @ shares[places])[:, 0])
        return torch.cat(found) if found else shares.new_empty(0, shares.shape[1])

    def label_maps(self, maps: Tensor) -> Tensor:
        """Returns the shares `(B, C, h, w)` float32 of feature maps `(B, D, h, w)`."""
        found: Tensor = self(maps.movedim(1, -1).flatten(0, 2))
        return found.view(maps.shape[0], *maps.shape[2:], -1).movedim(-1, 1)


def labelled_patches(maps: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Returns the patches of an image for the memory, without patches of only void.

    Args:
        maps: features of the image, `(D, h, w)`.
        labels: of the same area at any resolution, `(H, W)` uint8, 255 void.
        num_classes: C.

    Returns:
        Features `(n, D)` float32, and each class's share of a patch's pixels that are not void,
        `(n, C)` float32, on the device of the maps.
    """
    counts = pixel_counts(labels.cpu(), (maps.shape[-2], maps.shape[-1]), num_classes)  # (C, h*w)
    seen = counts.sum(0)
    shares = (counts / seen.clamp_min(1)).T[seen > 0].float()
    return maps.flatten(1).T[(seen > 0).to(maps.device)].float(), shares.to(maps.device)
