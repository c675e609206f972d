"""A head without parameters: the classes of the nearest patches of the training images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from models.heads.base import SingleMapHead
from models.measures.dense_knn import NEAREST, TEMPERATURE, PatchMemory


class KNN(SingleMapHead):
    """Dense k-NN retrieval (Balažević et al. 2023), see `models.measures.dense_knn`.

    Its "logits" are shares of the classes: these are upsampled and compared. They need no softmax
    and are not meant for a loss.

    Args:
        channels: C of each map.
        strides: image pixels per cell of each map.
        num_classes: logits per pixel.
        k: number of neighbours.
        temperature: of their weights.

    Attributes:
        memory: saved in the checkpoint, like weights: a run can label images on another machine,
            without the images in its memory.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        k: int = NEAREST,
        temperature: float = TEMPERATURE,
    ) -> None:
        super().__init__(channels, strides, num_classes)
        self.memory = PatchMemory(self.in_channels, num_classes, k, temperature)

    def decode(self, x: Tensor) -> Tensor:
        """See `SingleMapHead.decode`."""
        return self.memory.label_maps(x)
