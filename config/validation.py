"""Checks hparams as a whole: types, ranges, and settings that would have no effect."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from config import names
from config.convert import ConfigError, base_types, get_leaf, leaves
from config.hparams import Hparams
from utils.nested import nested

# group: (its selector, table of choices, leaves every choice reads)
_SELECTED: Mapping[str, tuple[str, Mapping[str, names.Part], Collection[str]]] = {
    "data": ("data.name", names.DATASETS, names.DATA_COMMON),
    "backbone": ("backbone.name", names.BACKBONES, names.BACKBONE_COMMON),
    "optim": ("optim.name", names.OPTIMIZERS, names.OPTIM_COMMON),
}


def check(hparams: Hparams) -> Hparams:
    """Returns `hparams` if everything in it is possible and has an effect.

    Raises:
        ConfigError: names the dotted path, the value and what was expected.
    """
    for leaf in leaves(hparams):
        problem = _problem(leaf.value, leaf.annotation)
        if problem:
            raise ConfigError(f"--{leaf.path} {leaf.value}: {problem}.")
    for leaf in leaves(hparams):
        # null asks for nothing, so it may be given wherever it does nothing.
        asked = leaf.value != leaf.default and leaf.value is not None
        if asked and (reason := no_effect(hparams, leaf.path)):
            raise ConfigError(f"--{leaf.path} {leaf.value} has no effect {reason}.")
    _check_combinations(hparams)
    return hparams


def _problem(value: Any, annotation: Any) -> str | None:
    allowed = base_types(annotation)
    if not any(_is_a(value, kind) for kind in allowed):
        return f"expected {_describe(allowed)}, got {type(value).__name__}"
    if value is None:
        return None
    for constraint in _constraints(annotation):
        if problem := constraint.problem(value):
            return str(problem)
    return None


def _constraints(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        inner, *found = get_args(annotation)
        return _constraints(inner) + [item for item in found if hasattr(item, "problem")]
    return [item for arg in get_args(annotation) for item in _constraints(arg)]


def _is_a(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return any(value == option and type(value) is type(option) for option in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_a(item, get_args(kind)[0]) for item in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


_PLURALS = {int: "whole numbers", float: "numbers", str: "names"}


def _describe(allowed: tuple[Any, ...]) -> str:
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    parts: list[str] = []
    for kind in allowed:
        if get_origin(kind) is Literal:
            parts.extend(str(option) for option in get_args(kind))
        elif kind is type(None):
            parts.append("null")
        elif get_origin(kind) is list:
            parts.append("a list of " + _PLURALS[get_args(kind)[0]])
        else:
            parts.append(words[kind])
    return " or ".join(parts)


def no_effect(hparams: Hparams, path: str) -> str | None:
    """Says why a setting is not read by this run (`on task …`), or None when it is."""
    group, _, leaf = path.partition(".")
    if not names.reads(hparams.task, path):
        return f"on task {hparams.task}"
    if hparams.task not in names.TASK_ONLY.get(path, (hparams.task,)):
        return f"on task {hparams.task} (it is read by: {', '.join(names.TASK_ONLY[path])})"
    if path == "data.val_fraction" and hparams.task in ("segmentation", "linear_probe"):
        return None
    if group == "optim" and any(leaf in part.settings for part in names.SCHEDULES.values()):
        return _unread(hparams.optim.schedule, names.SCHEDULES, leaf, "schedule")
    if group == "segmentation" and (reason := _unread_by_fusions(hparams, leaf)):
        return reason
    if path == "head_information.blocks" and not hparams.head_information.weight:
        return "without --head_information.weight"
    if path in ("data.fixed_scales", "data.fixed_crops") and hparams.data.views != "fixed":
        return "without --data.views fixed"
    if group in _SELECTED:
        selector, table, common = _SELECTED[group]
        if leaf in common:
            if leaf == "unfreeze_last" and not hparams.backbone.freeze:
                return "without --backbone.freeze true"
            return None
        return _unread(get_leaf(hparams, selector), table, leaf, selector)
    return None


def _unread_by_fusions(hparams: Hparams, leaf: str) -> str | None:
    settings = hparams.segmentation
    readers = [name for name, part in names.FUSIONS.items() if leaf in part.settings]
    if readers and not set(readers) & set(settings.fusion):
        return f"without --segmentation.fusion {' or '.join(readers)}"
    if leaf in ("fusion_control", "fusion_lr_multiplier") and not settings.fusion:
        return "without --segmentation.fusion"
    if leaf == "attention_blocks" and not (settings.fusion or settings.attention_loss):
        return "without --segmentation.fusion or attention_loss"
    if leaf.startswith("attention_loss_") and not settings.attention_loss:
        return "without --segmentation.attention_loss"
    if leaf == "test_stride" and settings.test_window is None:
        return "without --segmentation.test_window"
    return None


def _unread(choice: str, table: Mapping[str, names.Part], leaf: str, what: str) -> str | None:
    if leaf in table[choice].settings:
        return None
    users = ", ".join(name for name, part in table.items() if leaf in part.settings)
    return f"on {what} {choice} (it is read by: {users})"


def _check_combinations(hparams: Hparams) -> None:
    data, trainer, segmentation = hparams.data, hparams.trainer, hparams.segmentation
    for name in ("global_crops_scale", "local_crops_scale"):
        scale = getattr(hparams.dino, name)
        if scale and (len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1):
            raise ConfigError(
                f"--dino.{name} {_words(scale)}: expected two shares of the image, smallest and "
                "largest, such as 0.05 0.4."
            )
    if data.split == "trainaug" and data.name != "voc":
        raise ConfigError(f"--data.split trainaug: only voc has it, not {data.name}.")
    if hparams.task == "segmentation" and data.split in ("all", "all_minus_val"):
        raise ConfigError(
            f"--data.split {data.split}: segmentation needs masks, which train and trainaug have."
        )
    if hparams.task == "linear_probe" and data.split != "train":
        raise ConfigError(f"--data.split {data.split}: a linear probe is trained on train.")
    _check_segmentation(hparams)
    if segmentation.loss_weights and len(segmentation.loss) != len(segmentation.loss_weights):
        raise ConfigError(
            f"--segmentation.loss_weights {_words(segmentation.loss_weights)}: expected one weight "
            f"for each loss ({_words(segmentation.loss)})."
        )
    if trainer.chunk_size is not None and trainer.chunk_size > data.batch_size:
        raise ConfigError(
            f"--trainer.chunk_size {trainer.chunk_size} exceeds --data.batch_size "
            f"{data.batch_size}: a chunk is a part of the batch. Lower it, or use null."
        )
    processes = trainer.devices * trainer.num_nodes
    if data.batch_size % processes or data.batch_size < 2 * processes:
        raise ConfigError(
            f"--data.batch_size {data.batch_size} cannot be divided among {processes} processes "
            f"(devices {trainer.devices} x num_nodes {trainer.num_nodes}), at least two images "
            "each: choose a multiple."
        )
    if processes > 1 and (trainer.tune_batch_size or trainer.tune_lr):
        raise ConfigError("--trainer.tune_batch_size and tune_lr work on one device; tune first.")
    if processes == 1 and trainer.sync_batchnorm:
        raise ConfigError("--trainer.sync_batchnorm has no effect on one device.")
    if trainer.compile and trainer.chunk_size is not None:
        raise ConfigError(
            "--trainer.compile has no effect together with --trainer.chunk_size: "
            "chunks are recomputed uncompiled. Choose one."
        )
    if hparams.backbone.unfreeze_last and not hparams.backbone.freeze:
        raise ConfigError("--backbone.unfreeze_last has no effect without --backbone.freeze true.")


def _check_segmentation(hparams: Hparams) -> None:
    data, settings, backbone = hparams.data, hparams.segmentation, hparams.backbone
    frozen = backbone.freeze and not backbone.unfreeze_last
    if data.feature_cache not in ("auto", "off") and not (data.views == "fixed" and frozen):
        raise ConfigError(
            f"--data.feature_cache {data.feature_cache}: random views and a backbone in training "
            "have no features to keep. Add --data.views fixed and --backbone.freeze true."
        )
    if not data.fixed_scales or min(data.fixed_scales) <= 0:
        raise ConfigError(f"--data.fixed_scales {_words(data.fixed_scales)}: expected numbers > 0.")
    if not settings.test_scales or min(settings.test_scales) <= 0:
        raise ConfigError(
            f"--segmentation.test_scales {_words(settings.test_scales)}: expected numbers > 0."
        )
    window, stride = settings.test_window, settings.test_stride
    if window is not None and stride is not None and window < stride:
        raise ConfigError(
            f"--segmentation.test_window {window} is smaller than --segmentation.test_stride "
            f"{stride}: pixels between the windows would never be labelled."
        )
    if data.image_size % settings.loss_stride:
        raise ConfigError(
            f"--data.image_size {data.image_size} is no multiple of --segmentation.loss_stride "
            f"{settings.loss_stride}."
        )
    if len(set(settings.fusion)) < len(settings.fusion):
        raise ConfigError(f"--segmentation.fusion {_words(settings.fusion)}: each of them once.")
    trained = set() if frozen else {"mass", "shape", "diversity"}
    trained |= {"affinity"} if "fusion2" in settings.fusion else set()
    trained |= {"mass", "shape"} if "fusion3" in settings.fusion else set()
    if settings.attention_loss and not trained & set(settings.attention_loss_terms):
        raise ConfigError(
            f"--segmentation.attention_loss {settings.attention_loss} has nothing to train: "
            f"{_words(settings.attention_loss_terms)} need --backbone.unfreeze_last 2 (mass, "
            "shape, diversity), fusion2 (affinity) or fusion3 (mass, shape)."
        )
    tested = window is not None or settings.test_flip or settings.test_scales != [1.0]
    if tested and settings.fusion_control == "shuffled":
        raise ConfigError(
            "--segmentation.fusion_control shuffled judges whole images at one scale: it cannot be "
            "combined with test_window, test_scales or test_flip."
        )


def _words(values: Collection[Any]) -> str:
    return " ".join(map(str, values))


def active_settings(hparams: Hparams) -> dict[str, Any]:
    """Returns the settings this run reads, as a plain nested dict."""
    return nested(
        {leaf.path: leaf.value for leaf in leaves(hparams) if not no_effect(hparams, leaf.path)}
    )
