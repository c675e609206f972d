"""Replaces `auto` and null by the values a run will use, so that they can be written down.

In three steps, because each needs what the one before has found: names (`choose_names`), what
follows from task, data set and backbone (`resolve`), what follows from the number of images
(`resolve_for_data`). What follows from the memory of the machine is measured, in `agents`.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from copy import deepcopy
from typing import Any

from config import names
from config.convert import leaves, set_leaf
from config.hparams import BarlowTwinsHparams, Hparams
from config.rules import get_leaf, metadata, unmet
from config.types import Cadence, StepCadence
from utils.text import count, format_result

# By data set; all others are photographs.
_BACKBONES, _BACKBONE_FOR_PHOTOGRAPHS = {"shapes": "vit_demo", "cifar10": "resnet18"}, "vit_small"
_IMAGE_SIZES, _SIZE_OF_PHOTOGRAPHS = {"shapes": 48, "cifar10": 32}, 224
_FEWEST_PATCHES = 8  # a side, in which a ViT sees an image
_DEMO_PATCH, _VIT_PATCH, _SWIN_MULTIPLE, _TIMM_MULTIPLE = 8, 16, 32, 32  # px, a side
_SMALL_IMAGE = 64  # px, up to which a ResNet of its own has the stem for small images
_SHARP_IMAGE = 32  # px, up to which nothing is blurred

# Barlow Twins: a projector for batches of 128 to 256, and the paper's weight, at this width.
_PROJECTOR_DIM, _LAMBDA = 512, 0.0051

# Weight decay. adamw: small-ViT practice; lars: Barlow Twins official code; sgd: DINO's ResNet-50.
_WEIGHT_DECAY = {"adamw": 0.05, "lars": 1.5e-6, "sgd": 1e-4}
_DINO_TASKS = ("dino", "dino_twins")
_DINO_WEIGHT_DECAY, _DINO_FINAL_WEIGHT_DECAY = 0.04, 0.4
_TWINS_BETA = {"barlow_twins": 2.5e-3, "sigreg": 0.05}  # the study's; LeJEPA's
# Peak learning rate of self-supervised training at batch 256, from the same sources; methods whose
# own (DINO's code, LeJEPA's minimal example) differs under adamw.
_ADAMW_LR = {"dino": 5e-4, "dino_twins": 5e-4, "lejepa": 2e-3}
_PRETRAINING_LR = {"adamw": 1e-3, "lars": 0.2, "sgd": 0.03}
# Of a segmentation head at batch 16 (the study's; SETR's and DeepLab's SGD), and of the loaded
# backbone below it when that is trained too (SegFormer's AdamW).
_HEAD_LR = {"adamw": 5e-3, "lars": 0.01, "sgd": 0.01}
_FINE_TUNING_LR = {"adamw": 1e-4, "lars": 0.01, "sgd": 0.01}
# Of a linear classifier on standardised features, at batch 256.
_PROBE_LR = {"adamw": 1e-3, "lars": 0.1, "sgd": 0.1}


def choose_names(hparams: Hparams) -> Hparams:
    """Returns a copy in which `auto` names are chosen, and aliases are the names they stand for."""
    hparams = deepcopy(hparams)
    backbone, segmentation = hparams.backbone, hparams.segmentation
    if backbone.name == "auto":
        backbone.name = _BACKBONES.get(hparams.data.name, _BACKBONE_FOR_PHOTOGRAPHS)
    backbone.name = names.BACKBONE_ALIASES.get(backbone.name, backbone.name)
    segmentation.fusion = [names.FUSION_ALIASES.get(name, name) for name in segmentation.fusion]
    return hparams


def resolve(hparams: Hparams) -> Hparams:
    """Returns a copy with what follows from task, data set and backbone."""
    hparams = choose_names(hparams)
    data, backbone = hparams.data, hparams.backbone
    if data.image_size == "auto":
        data.image_size = _image_size(hparams)
    if backbone.stem == "auto":
        small, own = int(data.image_size) <= _SMALL_IMAGE, backbone.weights == "none"
        plain = backbone.output_stride == 32
        backbone.stem = "cifar_maxpool" if small and own and plain else "imagenet"
    if data.blur is None:
        data.blur = int(data.image_size) > _SHARP_IMAGE
    if data.root is None:
        data.root = f"data/{data.name}"
    if hparams.task == "dino_twins" and hparams.dino_twins.beta == "auto":
        hparams.dino_twins.beta = _TWINS_BETA[hparams.dino_twins.term]
    _resolve_demonstration(hparams)
    _resolve_barlow_twins(hparams.barlow_twins)
    _resolve_weight_decay(hparams)
    _resolve_crops(hparams)
    return hparams


def _demonstrates(hparams: Hparams) -> bool:
    return hparams.data.name == "shapes" and hparams.task in names.PRETRAINING


def _resolve_demonstration(hparams: Hparams) -> None:
    if _demonstrates(hparams):
        chosen = _DEMONSTRATION[""] | _DEMONSTRATION.get(hparams.task, {})
        for path, value in chosen.items():
            if get_leaf(hparams, path) in ("auto", []):
                set_leaf(hparams, path, deepcopy(value))


def _resolve_barlow_twins(method: BarlowTwinsHparams) -> None:
    if method.projector_dim == "auto":
        method.projector_dim = _PROJECTOR_DIM
    if method.lambd == "auto":
        method.lambd = round(_LAMBDA * _PROJECTOR_DIM / int(method.projector_dim), 6)
    method.crop_scale = method.crop_scale or [0.08, 1.0]


def patch_multiple(hparams: Hparams) -> int:
    """Returns what the sides of images have to be multiples of for the chosen backbone, in px.

    Of timm's networks what suits most: which one it is only timm knows.
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
    dino = hparams.task in _DINO_TASKS
    rising = dino and optim.name == "adamw"
    if optim.weight_decay == "auto" and hparams.task == "linear_probe":
        optim.weight_decay = 0.0  # DINO's linear evaluation
    if optim.weight_decay == "auto":
        optim.weight_decay = _DINO_WEIGHT_DECAY if rising else _WEIGHT_DECAY[optim.name]
    if dino and optim.final_weight_decay == "auto":
        optim.final_weight_decay = _DINO_FINAL_WEIGHT_DECAY if rising else optim.weight_decay


def _resolve_crops(hparams: Hparams) -> None:
    if hparams.task not in _DINO_TASKS:
        return
    dino = hparams.dino
    if dino.local_crop_size == "auto":
        # 96 for 224, as in the paper; most patch sizes divide 16.
        patch = patch_multiple(hparams)
        step = patch if 16 % patch else 16
        dino.local_crop_size = step * max(1, round(int(hparams.data.image_size) * 3 / 7 / step))
    if not dino.global_crops_scale:
        local = dino.multi_crop and dino.local_crops_number > 0
        dino.global_crops_scale = [0.4, 1.0] if local else [0.14, 1.0]


def resolve_for_data(hparams: Hparams, images: int, on_gpu: bool) -> Hparams:
    """Returns a copy with what follows from the number of images: batch, length, rates, cadences.

    Args:
        hparams: resolved otherwise.
        images: number of training images.
        on_gpu: a run on a CPU is made shorter by default, and leaves it a core.
    """
    hparams = deepcopy(hparams)
    data, trainer, optim = hparams.data, hparams.trainer, hparams.optim
    if data.num_workers is None:
        data.num_workers = _num_workers(trainer.devices, on_gpu)
    if data.batch_size == "auto":
        processes = trainer.devices * trainer.num_nodes
        shared = _batch_size(hparams, images) // processes
        data.batch_size = max(2, shared) * processes
        if isinstance(trainer.chunk_size, int) and trainer.chunk_size > data.batch_size:
            trainer.chunk_size = None  # the whole batch is smaller
    per_epoch = steps_per_epoch(hparams, images)
    if trainer.max_epochs == "auto":
        trainer.max_epochs = _epochs(hparams, per_epoch, on_gpu)
    steps = steps_of_run(hparams, images)
    epochs = math.ceil(steps / per_epoch)
    if optim.warmup_epochs == "auto":
        optim.warmup_epochs = float(min(10, max(1, round(epochs / 20))))
    if optim.lr == "auto":
        optim.lr = _learning_rate(hparams)
    for leaf in leaves(hparams):
        for extra in metadata(leaf.annotation) if leaf.value == "auto" else ():
            if isinstance(extra, Cadence | StepCadence):
                length = epochs if isinstance(extra, Cadence) else steps
                set_leaf(hparams, leaf.path, extra.every(length))
    if hparams.task in _DINO_TASKS:
        _resolve_dino(hparams, images, per_epoch)
    return hparams


def _num_workers(devices: int, on_gpu: bool) -> int:
    """Returns the loaders of each process: on a GPU all cores work for them."""
    # Those this process may use: in a container or under a scheduler not all there are.
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, cores // devices if on_gpu else min(8, cores - 1))


def steps_per_epoch(hparams: Hparams, images: int) -> int:
    """Returns the optimizer steps of an epoch; its batch size is resolved."""
    trainer = hparams.trainer
    batches = images // int(hparams.data.batch_size)
    batches = min(batches, trainer.limit_train_batches or batches)
    return max(1, math.ceil(batches / trainer.accumulate))


def steps_of_run(hparams: Hparams, images: int) -> int:
    """Returns the optimizer steps of the whole run; its batch size and length are resolved."""
    trainer = hparams.trainer
    return trainer.max_steps or int(trainer.max_epochs) * steps_per_epoch(hparams, images)


def _batch_size(hparams: Hparams, images: int) -> int:
    """Returns a power of two that leaves at least four (a segmentation: eight) steps an epoch.

    A correlation of few images is noise, so Barlow Twins keeps 128 where there are as many.
    """
    most, least, share = _DEMONSTRATION_BATCH if _demonstrates(hparams) else 256, 32, 4
    twins = hparams.task == "dino_twins" and hparams.dino_twins.term == "barlow_twins"
    if hparams.task == "barlow_twins" or twins:
        least = 128
    elif hparams.task == "segmentation":
        most, least, share = 16, 4, 8
    wanted = min(most, max(least, images // share))
    return 2 ** int(math.log2(max(2, min(wanted, images))))


# Optimizer steps on a GPU, and the epochs they may lie between.
_PRETRAINING_STEPS, _PRETRAINING_EPOCHS = 20_000, (10, 400)
_HEAD_STEPS, _SEGMENTATION_STEPS, _SEGMENTATION_EPOCHS = 3000, 8000, (4, 400)
_CPU_SHARE = 0.1
_PROBE_EPOCHS = 100  # DINO's
# Of every pretraining on the demonstration's images, and by task: what the readouts of its network
# found in minutes on two cores (benchmarks/RESULTS.md, section 1).
_DEMONSTRATION_BATCH, _DEMONSTRATION_LR = 128, 2e-3
_DEMONSTRATION: dict[str, dict[str, Any]] = {
    "": {"trainer.max_epochs": 40},
    "barlow_twins": {
        "barlow_twins.projector_dim": 16,
        "barlow_twins.crop_scale": [0.25, 1.0],
    },
}


def _epochs(hparams: Hparams, per_epoch: int, on_gpu: bool) -> int:
    backbone = hparams.backbone
    if hparams.task == "linear_probe":
        return _PROBE_EPOCHS
    steps, (fewest, most) = _PRETRAINING_STEPS, _PRETRAINING_EPOCHS
    if hparams.task == "segmentation":
        frozen = backbone.freeze and not backbone.unfreeze_last
        steps, (fewest, most) = _HEAD_STEPS if frozen else _SEGMENTATION_STEPS, _SEGMENTATION_EPOCHS
    wanted = steps * (1.0 if on_gpu else _CPU_SHARE) / per_epoch
    return min(most, max(fewest if on_gpu else 1, math.ceil(wanted)))


def _learning_rate(hparams: Hparams) -> float:
    """Scales with the batch linearly for LARS and SGD, with its square root for AdamW.

    Goyal et al. 2017, as in both SSL papers; Malladi et al. 2022, as in DINOv2.
    """
    name, backbone = hparams.optim.name, hparams.backbone
    if hparams.task == "segmentation" and backbone.freeze and not backbone.unfreeze_last:
        base, batch = _HEAD_LR[name], 16
    elif hparams.task == "segmentation" and backbone.weights != "none":
        base, batch = _FINE_TUNING_LR[name], 16
    elif hparams.task == "linear_probe":
        base, batch = _PROBE_LR[name], 256
    elif hparams.task == "barlow_twins" and name == "adamw" and backbone.name == "vit_demo":
        base, batch = _DEMONSTRATION_LR, _DEMONSTRATION_BATCH
    elif hparams.task in _ADAMW_LR and name == "adamw":
        base, batch = _ADAMW_LR[hparams.task], 256
    else:
        base, batch = _PRETRAINING_LR[name], 256
    return base * (int(hparams.data.batch_size) / batch) ** (0.5 if name == "adamw" else 1.0)


# What DINO needs at a given number of images, after lightly-train's observations: few images need
# few prototypes, a sharper teacher and a faster one.
_OUT_DIMS = (1024, 2048, 4096, 16384, 32768, 65536)
_OUT_DIM_LIMITS = (20_000, 50_000, 100_000, 200_000, 500_000)
_SMALL, _IMAGENET = 20_000, 1_281_167  # images between which temperature and momentum move
_MAX_WARMUP_STEPS, _MAX_FROZEN_STEPS = 37_500, 1250


def _resolve_dino(hparams: Hparams, images: int, per_epoch: int) -> None:
    dino, steps = hparams.dino, steps_of_run(hparams, images)
    share = min(1.0, max(0.0, (images - _SMALL) / (_IMAGENET - _SMALL)))
    chosen: dict[str, Any] = {
        "out_dim": _OUT_DIMS[bisect_left(_OUT_DIM_LIMITS, images)],
        "teacher_temp": 0.02 + share * 0.05,
        "warmup_teacher_temp_steps": min(_MAX_WARMUP_STEPS, math.ceil(0.3 * steps)),
        "momentum_teacher": 0.99 + share * 0.006,
        "freeze_last_layer_steps": min(_MAX_FROZEN_STEPS, per_epoch),
    }
    for name, value in chosen.items():
        if getattr(dino, name) == "auto":
            setattr(dino, name, value)
    if dino.warmup_teacher_temp == "auto":
        dino.warmup_teacher_temp = min(0.04, float(dino.teacher_temp))


def choices(given: Hparams, resolved: Hparams) -> str:
    """Says in one line what became of every `auto` that this run reads; empty without any."""
    found = {}
    for leaf in leaves(given):
        value = get_leaf(resolved, leaf.path)
        # Cadences follow from the length, which is said by itself.
        cadence = any(
            isinstance(extra, Cadence | StepCadence) for extra in metadata(leaf.annotation)
        )
        open_before = leaf.value in ("auto", []) and value not in ("auto", [])
        if open_before and not cadence and unmet(resolved, leaf.path) is None:
            found[leaf.path] = value
    words = ", ".join(
        f"{path} {format_result(value, missing='null')}" for path, value in found.items()
    )
    return f"auto: {words}" if words else ""


# Below these a run is a try-out, not a training.
_FEW_STEPS, _FEW_STEPS_AN_EPOCH = 50, 4


def length(hparams: Hparams, images: int) -> tuple[str, list[str]]:
    """Says how long the run will be.

    Args:
        hparams: resolved for the data.
        images: number of training images.

    Returns:
        The length in one line, and warnings of few steps.
    """
    trainer, batch = hparams.trainer, int(hparams.data.batch_size)
    what = f"{hparams.task} with {hparams.backbone.name} on {hparams.data.name}"
    if unmet(hparams, "trainer.max_steps"):
        return f"{what}: {images:,} training images; nothing is trained.", []
    per_epoch = steps_per_epoch(hparams, images)
    steps = steps_of_run(hparams, images)
    epochs = steps / per_epoch if trainer.max_steps else int(trainer.max_epochs)
    line = (
        f"{what}: {images:,} training images, batches of {batch}; {count(epochs, 'epoch')} of "
        f"{count(per_epoch, 'step')}, {steps:,} in all."
    )
    warnings = []
    if steps < _FEW_STEPS:
        warnings.append(
            f"Only {count(steps, 'optimizer step')}: too few to train anything. More: "
            "--trainer.max_epochs, or a smaller --data.batch_size."
        )
    elif per_epoch < _FEW_STEPS_AN_EPOCH:
        warnings.append(
            f"An epoch has only {count(per_epoch, 'step')}: rates, pictures and validations change "
            "from one to the next. More images, or a smaller --data.batch_size, make it finer."
        )
    return line, warnings
