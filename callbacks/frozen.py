"""Pictures of a frozen backbone: drawn once in a run, computed once for all runs with a cache.

They stay the same while a head is trained, and for other heads and seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pytorch_lightning import Callback, Trainer
from torch import Tensor

from callbacks.epochs import due
from callbacks.inspection import data_of
from datamodules.digests import tensors_digest
from datamodules.segmentation import SegmentationDataModule
from models.backbones.base import Backbone
from utils.device import arithmetic

Result = TypeVar("Result")


class BackbonePicture(Callback):
    """A picture that depends on the backbone only.

    Args:
        every_n_epochs: when to draw; a frozen backbone is drawn once in a run, as soon as this is
            switched on.

    Attributes:
        drawn: names of the pictures of a frozen backbone that have been drawn.
    """

    def __init__(self, every_n_epochs: int) -> None:
        self.every_n_epochs = every_n_epochs
        self.drawn: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """The pictures that a resumed run need not draw again."""
        return {"drawn": self.drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them."""
        self.drawn = list(state_dict["drawn"])

    def is_due(self, trainer: Trainer, backbone: Backbone, name: str = "") -> bool:
        """Returns whether to draw now; a picture of a frozen backbone then counts as drawn.

        Args:
            trainer: of the run.
            backbone: is inspected.
            name: which picture, if there are several.
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
    """Returns the result of `compute`; for a frozen backbone it may come from another run.

    Args:
        trainer: of the run; its feature cache, if any, also holds such results.
        backbone: is inspected.
        name: of the readout, also in the log.
        facts: what the result depends on, besides the backbone and `images`.
        images: those that are shown.
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
