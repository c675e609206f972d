"""How whole images are labelled: in windows or at once, at several scales, mirrored or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from models.heads.base import resize, size_of

Logits = Callable[[Tensor], Tensor]  # (B, 3, H, W) uint8 to (B, C, H, W)


@dataclass(frozen=True)
class Inference:
    """A recipe for labelling images, as in mmsegmentation's slide mode and test-time augmentation.

    Attributes:
        window: side of the windows in pixels; None: the whole image.
        stride: pixels from one window to the next; None: two thirds of the window.
        scales: relative sizes of the views, e.g. 0.5, 1, 1.5; images are given at the largest.
        flip: whether to use mirror images as well.
    """

    window: int | None = None
    stride: int | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __str__(self) -> str:
        """`whole`, or the settings, such as `window 512, stride 256, scales 0.5 1, flip`."""
        parts = [] if self.window is None else [f"window {self.window}"]
        if self.stride is not None:
            parts.append(f"stride {self.stride}")
        if self.scales != (1.0,):
            parts.append("scales " + " ".join(f"{scale:g}" for scale in self.scales))
        return ", ".join(parts + ["flip"] * self.flip) or "whole"

    def __call__(self, logits: Logits, images: Tensor) -> Tensor:
        """Labels images `(B, 3, H, W)` uint8.

        Returns:
            `(B, C, H, W)`: the logits of a single view, or the logarithm of the mean probabilities
            of several.
        """
        relative = [scale / max(self.scales) for scale in self.scales]
        views = [(scale, mirror) for scale in relative for mirror in (False, True)[: 1 + self.flip]]
        if len(views) == 1:
            return self._view(logits, images, *views[0])
        mean = torch.stack(
            [self._view(logits, images, *view).float().softmax(1) for view in views]
        ).mean(0)
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()

    def _view(self, logits: Logits, images: Tensor, scale: float, mirror: bool) -> Tensor:
        size = size_of(images)
        seen = TF.resize(images, [max(1, round(side * scale)) for side in size])
        seen = seen.flip(-1) if mirror else seen
        found = logits(seen) if self.window is None else self._in_windows(logits, seen, self.window)
        return resize(found.flip(-1) if mirror else found, size)

    def _in_windows(self, logits: Logits, images: Tensor, window: int) -> Tensor:
        height, width = images.shape[-2:]
        stride = self.stride or max(1, window * 2 // 3)
        total, count = None, images.new_zeros(1, 1, height, width, dtype=torch.float32)
        for top in starts(height, window, stride):
            for left in starts(width, window, stride):
                rows, columns = slice(top, top + window), slice(left, left + window)
                found = logits(images[..., rows, columns])
                if total is None:
                    total = found.new_zeros(*found.shape[:2], height, width)
                total[..., rows, columns] += found
                count[..., rows, columns] += 1
        assert total is not None
        return total / count


WHOLE = Inference()  # one pass over the whole image


def starts(length: int, window: int, stride: int) -> Sequence[int]:
    """Returns where windows start along a side; the last one ends where the side does."""
    last = max(0, length - window)
    return [*range(0, last, stride), last]
