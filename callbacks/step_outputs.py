"""The outputs of a step for callbacks, besides the loss for Lightning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

_KEY = "outputs"


@dataclass  # not frozen: Lightning detaches the tensors in place
class PretrainingOutputs:
    """Outputs of a batch of N images in pretraining.

    Attributes:
        features: `(N, D)` of the first view, as the backbone pools them.
        embeddings: of both views, `(N, D')` each; None for methods without a pair.
    """

    features: Tensor
    embeddings: tuple[Tensor, Tensor] | None = None


@dataclass
class CropOutputs:
    """Outputs of a batch of B training crops of a segmentation.

    Attributes:
        logits: `(B, C, h, w)`, on the grid of the loss.
    """

    logits: Tensor


@dataclass
class EvaluationOutputs:
    """Outputs of whole images that are compared with their labels.

    Attributes:
        predictions: labels of each image, `(H, W)` uint8.
    """

    predictions: list[Tensor]


Outputs = TypeVar("Outputs", PretrainingOutputs, CropOutputs, EvaluationOutputs)


def step_result(loss: Tensor, outputs: Outputs) -> dict[str, Any]:
    """Returns what a Lightning step returns."""
    return {"loss": loss, _KEY: outputs}


def outputs_of(result: Any, kind: type[Outputs]) -> Outputs | None:
    """Returns the outputs of a step if they are of this kind, else None."""
    found = result.get(_KEY) if isinstance(result, Mapping) else None
    return found if isinstance(found, kind) else None
