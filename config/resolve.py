"""Replaces `auto` and null by the values a run will use, so that they can be saved.

Three steps, each of which needs the results of the one before: names (`choose_names`), values that
depend on task, data set and backbone (`resolve`), and on the number of images (`config.length`).
Values that depend on the machine's memory are measured in `agents`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from typing import Any

from config import names
from config.convert import ConfigError, set_leaf
from config.hparams import BACKBONE_LEARNS, Hparams
from config.rules import get_leaf

# Image sizes by data set; all others have photographs.
_BACKBONES, _BACKBONE_FOR_PHOTOGRAPHS = {"shapes": "vit_demo", "cifar10": "resnet18"}, "vit_small"
_IMAGE_SIZES, _SIZE_OF_PHOTOGRAPHS = {"shapes": 48, "cifar10": 32}, 224
_FEWEST_PATCHES = 8  # per side of an image for a ViT
_DEMO_PATCH, _VIT_PATCH, _SWIN_MULTIPLE, _TIMM_MULTIPLE = 8, 16, 32, 32  # px per side
_SMALL_IMAGE = 64  # px; up to this, a ResNet without weights has the stem for small images
_SHARP_IMAGE = 32  # px; up to this, views are not blurred

# Barlow Twins: a projector width for batches of 128 to 256, and the paper's lambda at this width.
_PROJECTOR_DIM, _LAMBDA = 512, 0.0051

# Weight decay. adamw: small-ViT practice; lars: Barlow Twins official code; sgd: DINO's ResNet-50.
_WEIGHT_DECAY = {"adamw": 0.05, "lars": 1.5e-6, "sgd": 1e-4}
DINO_TASKS = ("dino", "dino_twins")
_DINO_WEIGHT_DECAY, _DINO_FINAL_WEIGHT_DECAY = 0.04, 0.4
_TWINS_BETA = {"barlow_twins": 2.5e-3, "sigreg": 0.05}  # the study's; LeJEPA's
# For pretraining on the demonstration's images: the best readouts after minutes on two cores
# (benchmarks/RESULTS.md, section 1).
_DEMONSTRATION_EPOCHS = 40
_DEMONSTRATION_DINO = {
    "dino.hidden_dim": 512,
    "dino.head_batch_norm": True,
    "dino.local_crops_number": 4,
    "dino.local_crops_scale": [0.15, 0.5],
}
_DEMONSTRATION: dict[str, dict[str, Any]] = {
    "barlow_twins": {
        "barlow_twins.projector_dim": 16,
        "barlow_twins.crop_scale": [0.25, 1.0],
    },
    "dino": _DEMONSTRATION_DINO,
    "dino_twins": _DEMONSTRATION_DINO,
}


def choose_names(hparams: Hparams) -> Hparams:
    """Returns a copy in which `auto` names are chosen, and aliases are replaced."""
    hparams = deepcopy(hparams)
    backbone, segmentation = hparams.backbone, hparams.segmentation
    if backbone.name == "auto":
        backbone.name = _BACKBONES.get(hparams.data.name, _BACKBONE_FOR_PHOTOGRAPHS)
    backbone.name = names.BACKBONE_ALIASES.get(backbone.name, backbone.name)
    segmentation.fusion = [names.FUSION_ALIASES.get(name, name) for name in segmentation.fusion]
    return hparams


def resolve(hparams: Hparams) -> Hparams:
    """Returns a copy with the values that depend on task, data set and backbone."""
    hparams = choose_names(hparams)
    fill(hparams, {"data.image_size": _image_size(hparams)})
    chosen: dict[str, Any] = {
        "backbone.stem": _stem(hparams),
        "data.blur": int(hparams.data.image_size) > _SHARP_IMAGE,
        "data.root": default_root(hparams.data.name),
    }
    if hparams.task == "dino_twins":
        chosen["dino_twins.beta"] = _TWINS_BETA[hparams.dino_twins.term]
    if demonstrates(hparams):
        chosen["trainer.max_epochs"] = _DEMONSTRATION_EPOCHS
        chosen |= _DEMONSTRATION.get(hparams.task, {})
    fill(hparams, chosen)
    _resolve_barlow_twins(hparams)
    _resolve_weight_decay(hparams)
    if hparams.task in DINO_TASKS:
        _resolve_dino(hparams)
    return hparams


def fill(hparams: Hparams, chosen: Mapping[str, Any]) -> None:
    """Sets those of these settings, by dotted path, that are open: `auto`, empty or null."""
    for path, value in chosen.items():
        if get_leaf(hparams, path) in ("auto", [], None):
            set_leaf(hparams, path, deepcopy(value))


def demonstrates(hparams: Hparams) -> bool:
    """Whether a run pretrains on the demonstration's images."""
    return hparams.data.name == "shapes" and hparams.task in names.PRETRAINING


def default_root(data_set: str) -> str:
    """Returns the default folder of a data set."""
    return f"data/{data_set}"


def learns_backbone(hparams: Hparams) -> bool:
    """Whether any part of the backbone is trained."""
    return BACKBONE_LEARNS.holds(partial(get_leaf, hparams))


def processes_of(hparams: Hparams) -> int:
    """Returns the number of processes that train together."""
    return hparams.trainer.devices * hparams.trainer.num_nodes


def _stem(hparams: Hparams) -> str:
    backbone = hparams.backbone
    small, own = int(hparams.data.image_size) <= _SMALL_IMAGE, backbone.weights == "none"
    return "cifar_maxpool" if small and own and backbone.output_stride == 32 else "imagenet"


def _resolve_barlow_twins(hparams: Hparams) -> None:
    fill(hparams, {"barlow_twins.projector_dim": _PROJECTOR_DIM})
    width = int(hparams.barlow_twins.projector_dim)
    chosen: dict[str, Any] = {
        "barlow_twins.hidden_dim": max(_PROJECTOR_DIM, width),
        "barlow_twins.lambd": round(_LAMBDA * _PROJECTOR_DIM / width, 6),
        "barlow_twins.crop_scale": [0.08, 1.0],
    }
    fill(hparams, chosen)


def patch_multiple(hparams: Hparams) -> int:
    """Returns the number of pixels of which image sides must be multiples for the backbone.

    For networks of timm, a value that suits most of them: only timm knows the exact one.
    """
    name = hparams.backbone.name
    if names.split(name)[0] == names.TIMM:
        return hparams.backbone.patch_size or _TIMM_MULTIPLE
    if name in names.VITS:
        return hparams.backbone.patch_size or (_DEMO_PATCH if name == "vit_demo" else _VIT_PATCH)
    return _SWIN_MULTIPLE if name in names.SWINS else 1


def _image_size(hparams: Hparams) -> int:
    name, multiple = hparams.backbone.name, patch_multiple(hparams)
    least = _FEWEST_PATCHES * multiple if name in names.VITS and name != "vit_demo" else 0
    side = max(_IMAGE_SIZES.get(hparams.data.name, _SIZE_OF_PHOTOGRAPHS), least)
    if hparams.task == "segmentation":
        multiple = math.lcm(multiple, hparams.segmentation.loss_stride)
    return -(-side // multiple) * multiple


def _resolve_weight_decay(hparams: Hparams) -> None:
    optim = hparams.optim
    dino = hparams.task in DINO_TASKS
    rising = dino and optim.name == "adamw"
    if optim.weight_decay == "auto" and hparams.task == "linear_probe":
        optim.weight_decay = 0.0  # DINO's linear evaluation
    if optim.weight_decay == "auto":
        optim.weight_decay = (
            _DINO_WEIGHT_DECAY
            if rising
            else of_optimizer(_WEIGHT_DECAY, optim.name, "optim.weight_decay")
        )
    if dino and optim.final_weight_decay == "auto":
        optim.final_weight_decay = _DINO_FINAL_WEIGHT_DECAY if rising else optim.weight_decay


def of_optimizer(known: Mapping[str, float], name: str, path: str) -> float:
    """Returns the value of `auto` for an optimizer.

    Args:
        known: values by the names of optimizers.
        name: of the chosen optimizer.
        path: of the setting.

    Raises:
        ConfigError: there is no value for this optimizer.
    """
    if name not in known:
        raise ConfigError(f"--{path} auto: none is known for --optim.name {name}. Give a number.")
    return known[name]


def _resolve_dino(hparams: Hparams) -> None:
    # 96 for 224, as in the paper; most small patches divide 16.
    patch = patch_multiple(hparams)
    step = patch if patch >= 8 or 16 % patch else 16
    chosen: dict[str, Any] = {
        "dino.hidden_dim": 2048,
        "dino.head_batch_norm": False,
        "dino.local_crops_number": 8,
        "dino.local_crops_scale": [0.05, 0.4],
        "dino.local_crop_size": step * max(1, round(int(hparams.data.image_size) * 3 / 7 / step)),
    }
    fill(hparams, chosen)
    local = hparams.dino.multi_crop and int(hparams.dino.local_crops_number) > 0
    fill(hparams, {"dino.global_crops_scale": [0.4, 1.0] if local else [0.14, 1.0]})
