"""Training crops and the two evaluation protocols of semantic segmentation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from datamodules.transforms import operators
from datamodules.transforms.augmentations import blank, colour_changes, happens
from utils.palette import MEAN_COLOUR, VOID

_PADDING = {tv_tensors.Mask: VOID, "others": MEAN_COLOUR}  # any subclass of PIL's images


class Protocol(ABC):
    """A complete recipe for evaluation: what the network sees, and which labels count.

    Logits are always upsampled to the size of these labels before argmax; label 255 never counts.

    Attributes:
        needs_background: whether label 0 has to be background.
        side: side of the squares that images are squashed to, in pixels; None: they keep their
            aspect.
    """

    needs_background = False
    side: int | None = None

    def __call__(self, image: Image.Image, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Applies `image` to an image and `labels` to its mask."""
        return self.image(image), self.labels(labels)

    @abstractmethod
    def image(self, image: Image.Image) -> Tensor:
        """Returns the network's input, `(3, h, w)` uint8."""

    @abstractmethod
    def labels(self, labels: Tensor) -> Tensor:
        """Returns the labels that count, from the mask as stored, `(H, W)` uint8."""

    def training_labels(self, labels: Tensor) -> Tensor:
        """Returns the labels that training crops are cut from, `(H, W)` uint8."""
        return labels


class Standard(Protocol):
    """`voc12_standard`: keeps the aspect, evaluates at the original resolution, ignores void.

    Args:
        image_size: the shorter side after resizing (bilinear, antialiased), in pixels.
        scale: a factor on it.
    """

    def __init__(self, image_size: int, scale: float = 1.0) -> None:
        self.image_size = round(image_size * scale)

    def image(self, image: Image.Image) -> Tensor:
        """See `Protocol.image`."""
        return F.pil_to_tensor(F.resize(image, [self.image_size]))

    def labels(self, labels: Tensor) -> Tensor:
        """The original mask."""
        return labels


class Seed224(Protocol):
    """`voc12_seed224`: image and mask squashed to 224 x 224, void counted as background.

    Only to compare with the study (Apavou & Zucker 2022). Do not mix its numbers with those of
    VOC's own rules: the same network scores differently.

    Args:
        image_size: ignored, 224 is part of the recipe.
        scale: a factor on the network's input size; the labels stay at 224.
    """

    needs_background = True
    side = 224

    def __init__(self, image_size: int, scale: float = 1.0) -> None:
        self.seen = round(self.side * scale)

    def image(self, image: Image.Image) -> Tensor:
        """See `Protocol.image`."""
        return F.pil_to_tensor(F.resize(image, [self.seen, self.seen]))

    def labels(self, labels: Tensor) -> Tensor:
        """The nearest label at each of 224 x 224 points; 255 becomes 0."""
        resized = F.resize(labels[None], [self.side, self.side], InterpolationMode.NEAREST_EXACT)[0]
        return self.training_labels(resized)

    def training_labels(self, labels: Tensor) -> Tensor:
        """Void is background in training too, as it was in the study."""
        return labels.where(labels != VOID, 0)


class TrainingCrop:
    """A random square of a randomly scaled image, as in mmsegmentation and DeepLab.

    The shorter side becomes 0.5 to 2 times `image_size`, then a square is cut and randomly mirrored
    (a smaller image is padded, and the padding is void). Its colours are distorted as in
    torchvision (Liu et al. 2016, SSD), which unlike mmsegmentation permutes the channels of half
    the crops.

    Args:
        image_size: side of the crop in pixels.
        protocol: says which labels count.
    """

    def __init__(self, image_size: int, protocol: Protocol) -> None:
        self.side = image_size
        self.protocol = protocol
        self.scale = v2.RandomShortestSize(list(range(image_size // 2, 2 * image_size + 1)))
        self.place = v2.RandomCrop(image_size, pad_if_needed=True)
        self.distort = v2.RandomPhotometricDistort()
        operators.say_if_slow()

    def __call__(self, image: Image.Image, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Draws a crop from torch's generator.

        Returns:
            `(3, size, size)` uint8 and its labels `(size, size)` uint8.
        """
        height, width = self.scale.make_params([blank(image.size)])["size"]
        place = self.place.make_params([blank((width, height))])
        mirrored = happens(0.5)
        drawn = self.distort.make_params([blank((self.side, self.side))])
        changes = colour_changes(drawn, (0, 1, 2, 3) if drawn["contrast_before"] else (0, 2, 3, 1))
        left, top = (place[side] - place["padding"][i] for i, side in enumerate(("left", "top")))

        (rows, seen_rows), (columns, seen_columns) = (
            _overlap(start, self.side, length) for start, length in ((top, height), (left, width))
        )
        seen = operators.resized_part(np.asarray(image), height, width, seen_rows, seen_columns)
        if seen.shape[:2] != (self.side, self.side):
            part, seen = seen, np.empty((self.side, self.side, 3), np.uint8)
            seen[:] = np.resize(MEAN_COLOUR, (self.side, 3))
            seen[rows, columns] = part
        for change in changes:
            seen = change(seen)
        crop = operators.channels_first(seen, mirrored)
        if drawn["channel_permutation"] is not None:
            crop = crop.index_select(0, drawn["channel_permutation"])

        stored = self.protocol.training_labels(labels).numpy()
        mask = np.full((self.side, self.side), VOID, np.uint8)
        nearest = _nearest(stored.shape[0], height)[seen_rows]
        mask[rows, columns] = stored[nearest][:, _nearest(stored.shape[1], width)[seen_columns]]
        return crop, torch.from_numpy(np.ascontiguousarray(mask[:, :: -1 if mirrored else 1]))


class FixedViews:
    """Each image and its mirror image at given scales, cut to squares that never change.

    Args:
        image_size: side of the crop in pixels.
        protocol: says which labels count.
        scales: shorter side over `image_size`.
        crops: number of crops per scale and mirroring.
    """

    def __init__(
        self, image_size: int, protocol: Protocol, scales: Sequence[float], crops: int
    ) -> None:
        self.image_size = image_size
        self.protocol = protocol
        self.kinds = [
            (scale, mirrored)
            for scale in scales
            for _ in range(crops)
            for mirrored in (False, True)
        ]

    def __len__(self) -> int:
        """Views per image."""
        return len(self.kinds)

    def view(self, number: int) -> FixedView:
        """Returns the transform that makes one of the views."""
        return FixedView(self.image_size, self.protocol, *self.kinds[number])


class FixedView:
    """One of `FixedViews`: draws the place of the crop from torch's generator."""

    def __init__(self, image_size: int, protocol: Protocol, scale: float, mirrored: bool) -> None:
        self.protocol = protocol
        self.shorter = max(1, round(image_size * scale))
        self.place = v2.Compose(
            [
                v2.RandomCrop(image_size, pad_if_needed=True, fill=_PADDING),
                v2.RandomHorizontalFlip(1.0 if mirrored else 0.0),
            ]
        )

    def __call__(self, image: Image.Image, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `(3, size, size)` uint8 and its labels `(size, size)` uint8."""
        kept = self.protocol.training_labels(labels)
        scaled = F.resize(image, [self.shorter])
        mask = F.resize(kept[None], [scaled.height, scaled.width], InterpolationMode.NEAREST_EXACT)
        crop, mask = self.place(scaled, tv_tensors.Mask(mask[0]))
        return F.pil_to_tensor(crop), mask.as_subclass(Tensor)


def _overlap(start: int, side: int, length: int) -> tuple[slice, slice]:
    """Returns where a window and a picture overlap: as positions in the window, in the picture."""
    first, last = max(start, 0), min(start + side, length)
    return slice(first - start, last - start), slice(first, last)


def _nearest(stored: int, scaled: int) -> NDArray[np.int64]:
    """Returns the index of the stored label under the centre of each scaled pixel.

    This is torch's `nearest-exact`. `nearest`, which torchvision uses for masks, shifts them to the
    upper left of their image by half a pixel.
    """
    step = np.float32(stored) / np.float32(scaled)
    centres = (np.arange(scaled, dtype=np.float32) + np.float32(0.5)) * step
    return centres.astype(np.int64).clip(max=stored - 1)
