"""Torch-free tables of everything that can be chosen by name.

`--help`, the checks of `config/validation.py` and the assembly in `agents/trainer.py` all read
these tables: adding a backbone, data set, task or callback is one new file and one line here.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Part:
    """Something chosen by name.

    Attributes:
        target: `module:attribute`, imported only when the part is built.
        settings: the leaves of its hparams group that this part reads; the others have no effect.
    """

    target: str
    settings: tuple[str, ...] = ()

    def load(self) -> Any:
        """Imports and returns the class or builder."""
        module, attribute = self.target.split(":")
        return getattr(importlib.import_module(module), attribute)


# Every task names the hparams groups it reads, `task` and `run` aside.
TASKS: dict[str, Part] = {
    "barlow_twins": Part(
        "agents.barlow_twins:BarlowTwins",
        ("data", "backbone", "barlow_twins", "optim", "trainer", "logger", "callbacks"),
    ),
}

_VIT = ("patch_size", "depth", "embed_dim", "num_heads", "mlp_ratio", "pool", "layers", "drop_path")
_RESNET = ("stem", "output_stride", "layers")
BACKBONES: dict[str, Part] = {
    "resnet18": Part("models.backbones.resnet:resnet18", _RESNET),
    "resnet50": Part("models.backbones.resnet:resnet50", _RESNET),
    "vit_tiny": Part("models.backbones.vit:vit_tiny", _VIT),
    "vit_small": Part("models.backbones.vit:vit_small", _VIT),
    "vit_base": Part("models.backbones.vit:vit_base", _VIT),
    "vit_pytorch": Part(
        "models.backbones.vit_pytorch:vit_pytorch",
        (*(name for name in _VIT if name != "drop_path"), "dropout"),
    ),
}
BACKBONE_COMMON = ("name", "weights", "freeze", "unfreeze_last")

DATASETS: dict[str, Part] = {
    "shapes": Part("datamodules.shapes:ShapesDataModule"),
    "voc": Part("datamodules.voc:VOCDataModule", ("split", "download")),
    "image_folder": Part(
        "datamodules.image_folder:ImageFolderDataModule", ("split", "val_fraction")
    ),
}
DATA_COMMON = ("name", "root", "image_size", "batch_size", "num_workers")

OPTIMIZERS: dict[str, Part] = {
    "adamw": Part("utils.optim:adamw"),
    "lars": Part("utils.optim:lars", ("momentum",)),
    "sgd": Part("utils.optim:sgd", ("momentum",)),
}
OPTIM_COMMON = ("name", "lr", "weight_decay", "schedule")
SCHEDULES: dict[str, Part] = {
    "cosine": Part("utils.schedules:warmup_cosine", ("warmup_epochs", "final_lr_ratio")),
    "constant": Part("utils.schedules:warmup_constant", ("warmup_epochs",)),
}

CALLBACKS: dict[str, Part] = {
    "attention_maps": Part("callbacks.attention_maps:AttentionMaps"),
    "cross_correlation": Part("callbacks.cross_correlation:CrossCorrelation"),
    "views": Part("callbacks.views:Views"),
    "learning_curves": Part("callbacks.learning_curves:LearningCurves"),
    "early_stopping": Part("callbacks.early_stopping:early_stopping"),
}
