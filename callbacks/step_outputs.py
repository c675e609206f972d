"""What a step shows to callbacks, beside the loss that Lightning wants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

_KEY = "outputs"


@dataclass  # not frozen: Lightning detaches the tensors in place
class PretrainingOutputs:
    """Of a batch of N images.

    Attributes:
        features: `(N, D)` of the first view, as the backbone pools them.
        embeddings: of both views, `(N, D')` each; None for methods without a pair.
    """

    features: Tensor
    embeddings: tuple[Tensor, Tensor] | None = None


@dataclass
class CropOutputs:
    """Of a batch of B training crops.

    Attributes:
        logits: `(B, C, h, w)`, on the grid of the loss.
    """

    logits: Tensor


@dataclass
class EvaluationOutputs:
    """Of whole images that are compared with their labels.

    Attributes:
        predictions: labels of each image, `(H, W)` uint8.
    """

    predictions: list[Tensor]


Outputs = TypeVar("Outputs", PretrainingOutputs, CropOutputs, EvaluationOutputs)


def step_result(loss: Tensor, outputs: Outputs) -> dict[str, Any]:
    """Returns what a Lightning step returns."""
    return {"loss": loss, _KEY: outputs}


def outputs_of(result: Any, kind: type[Outputs]) -> Outputs | None:
    """Returns what a step shows, if it is of this kind."""
    found = result.get(_KEY) if isinstance(result, Mapping) else None
    return found if isinstance(found, kind) else None
