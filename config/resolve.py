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
from config.errors import ConfigError
from config.hparams import BACKBONE_LEARNS, Hparams
from config.rules import get_leaf
from config.settings_tree import set_leaf

# Image sizes by data set; all others have photographs.
_BACKBONES, _BACKBONE_FOR_PHOTOGRAPHS = {"shapes": "vit_demo", "cifar10": "resnet18"}, "vit_small"
_IMAGE_SIZES, _SIZE_OF_PHOTOGRAPHS = {"shapes": 48, "cifar10": 32}, 224
_FEWEST_PATCHES = 8  # per side of an image for a ViT
_DEMO_PATCH, _VIT_PATCH, _SWIN_MULTIPLE, _TIMM_MULTIPLE = 8, 16, 32, 32  # px per side
_SMALL_IMAGE = 64  # px; up to this, a ResNet without weights has the stem for small images
_SHARP_IMAGE = 32  # px; up to this, views are not blurred

# Barlow Twins: a projector width for batches of 128 to 256, and the paper's lambda at this width.
_PROJECTOR_DIM, _LAMBDA = 512, 0.0051

# Peak learning rate of self-supervised training at batch 256, from the papers and their code; for
# methods with another one (DINO's code, LeJEPA's minimal example); for the demonstration's network
# at batch 128 (benchmarks/RESULTS.md, section 1).
_PRETRAINING_LR = {"adamw": 1e-3, "lars": 0.2, "sgd": 0.03}
_OF_METHODS = {"dino": {"adamw": 5e-4}, "dino_twins": {"adamw": 5e-4}, "lejepa": {"adamw": 2e-3}}
_DEMONSTRATION_LR, DEMONSTRATION_BATCH = {"barlow_twins": 2e-3, "dino": 1e-3}, 128
# Factor for a backbone with loaded weights: a higher rate unlearns them (benchmarks/RESULTS.md,
# section 22).
_GOING_ON = 0.03
# For a segmentation head at batch 16 (the study's; SETR's and DeepLab's SGD), and for head and
# loaded backbone together (SegFormer's AdamW). LARS: moves a linear classifier of digits within
# hundreds of steps; below 0.1 it does not move.
_HEAD_LR = {"adamw": 5e-3, "lars": 1.0, "sgd": 0.01}
_FINE_TUNING_LR = {"adamw": 1e-4, "lars": 0.1, "sgd": 0.01}
# For a linear classifier on standardised features, at batch 256. MAE's 0.1 for LARS is for the
# length of ImageNet: within hundreds of steps it has no effect.
_PROBE_LR = {"adamw": 1e-3, "lars": 1.0, "sgd": 0.1}
# Weight decay. adamw: small-ViT practice; lars: Barlow Twins official code; sgd: DINO's ResNet-50.
_WEIGHT_DECAY = {"adamw": 0.05, "lars": 1.5e-6, "sgd": 1e-4}
_DINO_WEIGHT_DECAY, _DINO_FINAL_WEIGHT_DECAY = {"adamw": 0.04}, {"adamw": 0.4}
DINO_TASKS = ("dino", "dino_twins")
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
    optim, dino = hparams.optim, hparams.task in DINO_TASKS
    if optim.weight_decay == "auto" and hparams.task == "linear_probe":
        optim.weight_decay = 0.0  # DINO's linear evaluation
    if optim.weight_decay == "auto":
        known = _WEIGHT_DECAY | (_DINO_WEIGHT_DECAY if dino else {})
        optim.weight_decay = _of_optimizer(known, optim.name, "optim.weight_decay")
    if dino:
        final = _DINO_FINAL_WEIGHT_DECAY.get(optim.name, optim.weight_decay)
        fill(hparams, {"optim.final_weight_decay": final})


def learning_rate(hparams: Hparams) -> float:
    """Scales with the images per step: linearly for LARS and SGD, with their root for AdamW.

    Goyal et al. 2017, as in both SSL papers; Malladi et al. 2022, as in DINOv2. Loaded weights get
    a lower rate, which does not destroy what they have learnt.

    Raises:
        ConfigError: no rate is known for this optimizer.
    """
    name, backbone = hparams.optim.name, hparams.backbone
    if hparams.task == "segmentation" and not learns_backbone(hparams):
        known, batch = _HEAD_LR, 16
    elif hparams.task == "segmentation" and backbone.weights != "none":
        known, batch = _FINE_TUNING_LR, 16
    elif hparams.task == "linear_probe":
        known, batch = _PROBE_LR, 256
    elif hparams.task in _DEMONSTRATION_LR and (name, backbone.name) == ("adamw", "vit_demo"):
        known, batch = {name: _DEMONSTRATION_LR[hparams.task]}, DEMONSTRATION_BATCH
    else:
        known, batch = _PRETRAINING_LR | _OF_METHODS.get(hparams.task, {}), 256
    base = _of_optimizer(known, name, "optim.lr")
    if hparams.task in names.PRETRAINING and backbone.weights != "none":
        base *= _GOING_ON
    images = int(hparams.data.batch_size) * hparams.trainer.accumulate
    return base * (images / batch) ** (0.5 if name == "adamw" else 1.0)


def _of_optimizer(known: Mapping[str, float], name: str, path: str) -> float:
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
