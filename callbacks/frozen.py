"""What a frozen backbone shows: drawn once in a run, computed once for all that cache features.

It stays the same while a head is trained, and for every other head and seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pytorch_lightning import Trainer
from torch import Tensor

from callbacks.inspection import data_of, due, epochs_at_once
from datamodules.feature_cache import tensors_digest
from datamodules.segmentation import SegmentationDataModule
from models.backbones.base import Backbone
from utils.device import arithmetic

Result = TypeVar("Result")


def backbone_due(trainer: Trainer, backbone: Backbone, every_n_epochs: int) -> bool:
    """Whether to draw what only the backbone decides: as `due`, a frozen one in the first epoch."""
    if backbone.frozen:
        return trainer.current_epoch < epochs_at_once(trainer)
    return due(trainer, every_n_epochs)


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
