"""What a frozen backbone shows: drawn once in a run, computed once for all that cache features.

It stays the same while a head is trained, and for every other head and seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pytorch_lightning import Callback, Trainer
from torch import Tensor

from callbacks.inspection import data_of, due
from datamodules.feature_cache import tensors_digest
from datamodules.segmentation import SegmentationDataModule
from models.backbones.base import Backbone
from utils.device import arithmetic

Result = TypeVar("Result")


class BackbonePicture(Callback):
    """A picture of what only the backbone decides.

    Args:
        every_n_epochs: when to draw; a frozen backbone is drawn once in a run, as soon as this is
            switched on.

    Attributes:
        drawn: pictures of a frozen backbone that there are.
    """

    def __init__(self, every_n_epochs: int) -> None:
        self.every_n_epochs = every_n_epochs
        self.drawn: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """What is not to be drawn again when the run goes on."""
        return {"drawn": self.drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        self.drawn = list(state_dict["drawn"])

    def is_due(self, trainer: Trainer, backbone: Backbone, name: str = "") -> bool:
        """Whether to draw now, where one of a frozen backbone is then taken to be drawn.

        Args:
            trainer: of the run.
            backbone: what is looked into.
            name: which picture, where there are several.
        """
        if not backbone.frozen:
            return due(trainer, self.every_n_epochs)
        is_first = name not in self.drawn
        if is_first:
            self.drawn.append(name)
        return is_first


def cached(
    trainer: Trainer,
    backbone: Backbone,
    name: str,
    facts: Mapping[str, Any],
    images: Iterable[Tensor],
    compute: Callable[[], Result],
) -> Result:
    """Returns what `compute` finds, or found in another run, of a frozen backbone.

    Args:
        trainer: of the run; its cache of features, where it has one, holds this as well.
        backbone: what is looked into.
        name: of the readout, in the log as well.
        facts: what the result follows from, beside the backbone and `images`.
        images: what is looked at.
        compute: see `FeatureCache.recall`.
    """
    data = data_of(trainer)
    cache = data.cache if isinstance(data, SegmentationDataModule) else None
    if cache is None or not backbone.frozen:
        return compute()
    shown = {f"{number} {tuple(image.shape)}": image for number, image in enumerate(images)}
    identity = {
        "weights": tensors_digest(backbone.state_dict()),
        "backbone": [backbone.recipe, backbone.patch_multiple, backbone.map_strides[-1]],
        "images": tensors_digest(shown),
        "precision": trainer.precision,
        **arithmetic(backbone.mean.device),
    }
    return cache.recall(name, {**facts, **identity}, compute)
