"""The network of a segmentation: images of any size to logits and labels of every pixel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones.base import Backbone, Features
from models.backbones.stored import Stored, pack, unpack
from models.fusions.attention_fusion import AttentionFusion
from models.heads.base import Head, Size, resize, size_of
from models.inference import WHOLE, Inference
from models.precision import at_least_float32
from utils.palette import MEAN_COLOUR, VOID


class Segmenter(nn.Module):
    """A head on the features of a backbone: images `(B, 3, H, W)` uint8 to logits.

    `encode` returns features, the fusion's control may replace their attention, `decode` fuses and
    returns logits, `labels_of` turns these into labels. It works with any head; that of Strudel et
    al.'s Segmenter (`models.heads.segmenter`) is one of them.

    Args:
        backbone: gives the features; no graph is built through a frozen one.
        head: features to logits.
        fusion: brings the backbone's attention to the head, if it is not empty.

    Attributes:
        multiple: images are padded until their sides are multiples of this many pixels.
    """

    def __init__(self, backbone: Backbone, head: Head, fusion: AttentionFusion) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.fusion = fusion
        # Then maps cover the padded image exactly, and logits can be cropped to the image.
        self.multiple = max(backbone.patch_multiple, *backbone.map_strides)
        self._training_pass = fusion.features

    def compile_training_pass(self) -> None:
        """Compiles `encode` for training crops; a copy made afterwards would train this network."""
        self._training_pass = torch.compile(self.fusion.features, dynamic=False)

    def encode(self, images: Tensor, stored: Sequence[Stored] = ()) -> Features:
        """Runs the backbone on images `(B, 3, H, W)` uint8 of any size, padded.

        Args:
            images: of one size.
            stored: features of each image from a cache, which are returned instead.
        """
        if stored:
            return unpack(stored, self.backbone)
        # Not for whole images: each of their many sizes would be compiled anew.
        run = self._training_pass if self.training else self.fusion.features
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.backbone.frozen):
            return run(self.backbone, pad_to_multiple(images, self.multiple))

    @torch.no_grad()
    def stored_features(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Returns the features of `encode` as tensors of each image for a cache, see `pack`.

        Raises:
            ValueError: a value exceeds the range of half precision.
        """
        return pack(self.encode(images.to(self.backbone.mean.device)))

    def decode(self, features: Features, size: Size, stride: int = 1) -> Tensor:
        """Fuses attention in and returns logits `(B, C, H / stride, W / stride)`.

        Args:
            features: of images, with the attention to use.
            size: `(H, W)` of the images before they were padded.
            stride: image pixels per logit.
        """
        return self.of_pixels(self.fusion(self.head, features), size, stride)

    def of_pixels(self, logits: Tensor, size: Size, stride: int = 1) -> Tensor:
        """Returns fused logits at the resolution of `decode`, from the head's own resolution."""
        padded = self._upsampled(logits, size, stride)
        return padded[..., : size[0] // stride, : size[1] // stride]

    def padded_logits(self, features: Features, size: Size) -> Tensor:
        """Does what `decode` does, but keeps the padding: `(B, C, H', W')`."""
        return self._upsampled(self.fusion(self.head, features), size, 1)

    def _upsampled(self, logits: Tensor, size: Size, stride: int) -> Tensor:
        # In float32 or better: in half precision classes would tie along their borders, and the
        # first would win.
        (logits,) = at_least_float32(logits)
        padded = [_padded(side, self.multiple) for side in size]
        if not any(side % stride for side in padded):
            return resize(logits, (padded[0] // stride, padded[1] // stride))
        # A logit covers `stride` pixels even if the padded sides are not multiples of it.
        cells = zip(padded, logits.shape[-2:], strict=True)
        scale = [side / (count * stride) for side, count in cells]
        return F.interpolate(logits, scale_factor=scale, mode="bilinear", align_corners=False)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits `(B, C, H, W)` of images `(B, 3, H, W)` uint8 of any size."""
        features = self.fusion.controlled_batch(self.encode(images))
        return self.decode(features, size_of(images))

    def logits_at(
        self,
        images: Sequence[Tensor],
        sizes: Sequence[Size],
        stored: Sequence[Stored] = (),
        inference: Inference = WHOLE,
    ) -> Iterator[Tensor]:
        """Yields float32 logits `(C, *size)` of each of several images.

        Args:
            images: `(3, H, W)` uint8 of any sizes.
            sizes: size of the logits of each; upsampled one image at a time to save memory.
            stored: features of each image from a cache, for whole images in a single view.
            inference: windows, scales and flips.
        """
        found = self._logits(images, stored, inference)
        for image, size, logits in zip(images, sizes, found, strict=True):
            of_pixels = logits[None]
            if inference == WHOLE:
                of_pixels = self.of_pixels(of_pixels, size_of(image))
            yield resize(of_pixels.float(), size)[0]

    def _logits(
        self, images: Sequence[Tensor], stored: Sequence[Stored], inference: Inference
    ) -> list[Tensor]:
        # At the head's own resolution for images seen whole, otherwise for every pixel. Only images
        # of one size pass together: padding to a common size would change the result.
        by_size: dict[Size, list[int]] = {}
        for position, image in enumerate(images):
            by_size.setdefault(size_of(image), []).append(position)
        groups = list(by_size.values())
        stacks = [torch.stack([images[position] for position in group]) for group in groups]
        found: Iterable[Tensor]
        if inference == WHOLE:
            encoded = [
                (group, self.encode(stack, [stored[position] for position in group if stored]))
                for group, stack in zip(groups, stacks, strict=True)
            ]
            # A control may exchange attention between images of different sizes.
            controlled = self.fusion.controlled(encoded)
            found = (self.fusion(self.head, features) for _, features in controlled)
        else:
            found = (inference(self, stack) for stack in stacks)
        by_position = {
            position: logits
            for group, batch in zip(groups, found, strict=True)
            for position, logits in zip(group, batch, strict=True)
        }
        return [by_position[position] for position in range(len(images))]


def labels_of(logits: Tensor) -> Tensor:
    """Returns the most likely labels, `(…, H, W)` uint8, of logits `(…, C, H, W)`."""
    return logits.argmax(-3).to(torch.uint8)


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Pads images `(B, 3, H, W)` uint8 at the right and bottom with the mean colour."""
    height, width = images.shape[-2:]
    # No test whether padding is needed: torch.export would fix the answer of the traced size.
    if not torch.compiler.is_exporting() and not (height % multiple or width % multiple):
        return images
    colour = torch.tensor(MEAN_COLOUR, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    right = colour.expand(images.shape[0], 3, height, multiple)
    images = torch.cat([images, right], 3)[..., : _padded(width, multiple)]
    below = colour.expand(images.shape[0], 3, multiple, images.shape[3])
    return torch.cat([images, below], 2)[:, :, : _padded(height, multiple)]


def pad_labels(labels: Tensor, multiple: int) -> Tensor:
    """Pads labels `(…, H, W)` with void, as `pad_to_multiple` pads their images."""
    right, bottom = -labels.shape[-1] % multiple, -labels.shape[-2] % multiple
    return F.pad(labels, (0, right, 0, bottom), value=VOID)


def _padded(side: int, multiple: int) -> int:
    return (side + multiple - 1) // multiple * multiple
