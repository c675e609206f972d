"""Checks hparams as a whole: types, ranges, and settings that would have no effect."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from copy import deepcopy
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin
from unicodedata import category

from config.convert import ConfigError, base_types, leaves, set_leaf, shown
from config.hparams import Hparams
from config.resolve import choose_names
from config.rules import as_typed, get_leaf, metadata, no_effect, unmet
from config.types import Auto, Kept, OneOf, SomeOf, numbers_in
from utils.nested import flat, nested
from utils.text import did_you_mean


def check(hparams: Hparams) -> Hparams:
    """Returns a copy in which names are chosen, if everything in it is possible and has an effect.

    Kinds of numbers and texts, which a notebook may have of NumPy, become those that YAML knows.
    Names come first, because what has an effect depends on them: `backbone.name` is no longer
    `auto`, and fusions have the study's names.

    Raises:
        ConfigError: names the dotted path, the value and what was expected.
    """
    if not isinstance(hparams, Hparams):  # a notebook's may be anything
        raise ConfigError(f"Settings are a Hparams of config.hparams, got {shown(hparams)}.")
    check_values(hparams)
    hparams = choose_names(hparams)
    for leaf in leaves(hparams):
        set_leaf(hparams, leaf.path, _plain(leaf.value))
    for leaf in leaves(hparams):
        # null asks for nothing, so it may be given wherever it does nothing.
        asked = leaf.value != leaf.default and leaf.value is not None
        if asked and (reason := no_effect(hparams, leaf.path)):
            raise ConfigError(f"--{leaf.path} {as_typed(leaf.value)} has no effect {reason}.")
    _check_combinations(hparams)
    return hparams


def check_values(hparams: Hparams, source: str = "") -> None:
    """Checks every setting by itself: its type, its range, its name.

    Args:
        hparams: also such as a user has edited or put together.
        source: begins the message, where the values are from.

    Raises:
        ConfigError: names the dotted path, the value and what was expected.
    """
    before = f"{source}: " if source else ""
    for leaf in leaves(hparams):
        if problem := _problem(_plain(leaf.value), leaf.annotation):
            end = "" if problem.endswith("?") else "."
            raise ConfigError(f"{before}--{leaf.path} {shown(leaf.value)}: {problem}{end}")


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain_item(item) for item in value]
    return _plain_item(value)


def _plain_item(value: Any) -> Any:
    if isinstance(value, str):
        return str.__str__(value)  # str() of a member of an enumeration is its name
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def _problem(value: Any, annotation: Any) -> str | None:
    allowed = base_types(annotation)
    constraints = [extra for extra in metadata(annotation) if hasattr(extra, "problem")]
    if not any(_is_a(value, kind) for kind in allowed):
        return f"expected {_described(allowed, constraints)}{_hint(value, allowed)}"
    if value is None:
        return None
    problems = (constraint.problem(value) for constraint in constraints)
    return _not_plain(value) or next((str(each) for each in problems if each), None)


_LARGEST = 2**32 - 1  # no count needs more, and 64 bits hold what is computed from it


def _not_plain(value: Any) -> str | None:
    """Says what no setting may be, whatever its range."""
    numbers = numbers_in(value)
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        return "expected a finite number"
    if any(isinstance(number, int) and abs(number) > _LARGEST for number in numbers):
        return f"expected at most {_LARGEST}"
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and not text.strip():
            return "expected a name, not an empty text"
        if isinstance(text, str) and any(category(sign) in ("Cc", "Cs") for sign in text):
            return "expected a text without control characters"
    return None


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


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_PLURALS = {int: "whole numbers", float: "numbers", str: "names"}


def _described(allowed: tuple[Any, ...], constraints: list[Any]) -> str:
    auto = any(isinstance(each, Auto) for each in constraints)
    choices = [each.names for each in constraints if isinstance(each, OneOf | SomeOf)]
    parts: list[str] = []
    for kind in allowed:
        if get_origin(kind) is Literal:
            parts.extend(str(option) for option in get_args(kind))
        elif kind is type(None):
            parts.append("null")
        elif get_origin(kind) is list:
            parts.append("a list of " + _PLURALS[get_args(kind)[0]])
        elif kind is str and choices:
            parts.append(f"one of {', '.join(choices[0])}")
        else:
            parts.append("auto" if kind is str and auto else _WORDS[kind])
    return " or ".join(parts)


def _hint(value: Any, allowed: tuple[Any, ...]) -> str:
    literals = (get_args(kind) for kind in allowed if get_origin(kind) is Literal)
    known = [option for options in literals for option in options if isinstance(option, str)]
    near = did_you_mean(value, known) if isinstance(value, str) else ""
    return f".{near}" if near else f", got {type(value).__name__}"


def _check_combinations(hparams: Hparams) -> None:
    data, trainer, segmentation = hparams.data, hparams.trainer, hparams.segmentation
    open_ones = ("dino.global_crops_scale", "barlow_twins.crop_scale")  # empty: to be chosen
    for path in (*open_ones, "dino.local_crops_scale", "lejepa.crop_scale"):
        scale = get_leaf(hparams, path)
        if not scale and path in open_ones:
            continue
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ConfigError(
                f"--{path} {as_typed(scale)}: expected two shares of the image, smallest and "
                "largest, such as 0.05 0.4."
            )
    if data.split == "trainaug" and data.name != "voc":
        raise ConfigError(f"--data.split trainaug: only voc has it, not {data.name}.")
    if hparams.task == "segmentation" and data.split in ("all", "all_minus_val"):
        raise ConfigError(
            f"--data.split {data.split}: segmentation needs masks, which train and trainaug have."
        )
    _check_segmentation(hparams)
    if segmentation.loss_weights and len(segmentation.loss) != len(segmentation.loss_weights):
        raise ConfigError(
            f"--segmentation.loss_weights {as_typed(segmentation.loss_weights)}: expected one "
            f"weight for each loss ({as_typed(segmentation.loss)})."
        )
    if segmentation.loss_weights and not any(segmentation.loss_weights):
        raise ConfigError(
            f"--segmentation.loss_weights {as_typed(segmentation.loss_weights)}: with 0 alone "
            "nothing is trained."
        )
    chunk, batch = trainer.chunk_size, data.batch_size
    if isinstance(chunk, int) and isinstance(batch, int) and chunk > batch:
        raise ConfigError(
            f"--trainer.chunk_size {trainer.chunk_size} exceeds --data.batch_size "
            f"{data.batch_size}: a chunk is a part of the batch. Lower it, or use null."
        )
    processes = trainer.devices * trainer.num_nodes
    if isinstance(batch, int) and (batch % processes or batch < 2 * processes):
        raise ConfigError(
            f"--data.batch_size {data.batch_size} cannot be divided among {processes} processes "
            f"(devices {trainer.devices} x num_nodes {trainer.num_nodes}), at least two images "
            "each: choose a multiple."
        )
    if processes > 1 and (trainer.tune_batch_size or trainer.tune_lr):
        raise ConfigError("--trainer.tune_batch_size and tune_lr work on one device; tune first.")
    if trainer.compile and isinstance(chunk, int):
        raise ConfigError(
            "--trainer.compile has no effect together with --trainer.chunk_size: "
            "chunks are recomputed uncompiled. Choose one."
        )


def _check_segmentation(hparams: Hparams) -> None:
    data, settings, backbone = hparams.data, hparams.segmentation, hparams.backbone
    frozen = backbone.freeze and not backbone.unfreeze_last
    for path in ("data.fixed_scales", "segmentation.test_scales"):
        if not get_leaf(hparams, path):
            raise ConfigError(f"--{path}: expected at least one number.")
    window, stride = settings.test_window, settings.test_stride
    if window is not None and stride is not None and window < stride:
        raise ConfigError(
            f"--segmentation.test_window {window} is smaller than --segmentation.test_stride "
            f"{stride}: pixels between the windows would never be labelled."
        )
    if isinstance(data.image_size, int) and data.image_size % settings.loss_stride:
        raise ConfigError(
            f"--data.image_size {data.image_size} is no multiple of --segmentation.loss_stride "
            f"{settings.loss_stride}."
        )
    if hparams.task == "segmentation" and settings.head == "knn" and not frozen:
        raise ConfigError(
            "--segmentation.head knn trains nothing, so nothing below it can be in training: it "
            "needs --backbone.freeze true, without --backbone.unfreeze_last."
        )
    if len(set(settings.fusion)) < len(settings.fusion):
        raise ConfigError(f"--segmentation.fusion {as_typed(settings.fusion)}: each of them once.")
    control, fusions = settings.fusion_control, settings.fusion
    if control != "none" and fusions == ["fusion2"] and settings.fusion_edges == ["tokens"]:
        raise ConfigError(
            f"--segmentation.fusion_control {control} has no effect on --segmentation.fusion_edges "
            "tokens: they need no attention."
        )
    trained = set() if frozen else {"mass", "shape", "diversity"}
    trained |= {"affinity"} if "fusion2" in settings.fusion else set()
    trained |= {"mass", "shape"} if "fusion3" in settings.fusion else set()
    if settings.attention_loss and not trained & set(settings.attention_loss_terms):
        raise ConfigError(
            f"--segmentation.attention_loss {settings.attention_loss} has nothing to train: "
            f"{as_typed(settings.attention_loss_terms)} need --backbone.unfreeze_last 2 (mass, "
            "shape, diversity), fusion2 (affinity) or fusion3 (mass, shape)."
        )
    tested = window is not None or settings.test_flip or settings.test_scales != [1.0]
    if tested and settings.fusion_control == "shuffled":
        raise ConfigError(
            "--segmentation.fusion_control shuffled judges whole images at one scale: it cannot be "
            "combined with test_window, test_scales or test_flip."
        )


def check_kept(hparams: Hparams, saved: Mapping[str, Any]) -> None:
    """Compares settings with those of the run that they are to continue.

    Args:
        hparams: resolved.
        saved: nested, as in the run's checkpoint; what an older version did not know is left out.

    Raises:
        ConfigError: one that the run keeps is another; names both values and the reason.
    """
    before = flat(saved)
    for leaf in leaves(hparams):
        for extra in metadata(leaf.annotation):
            kept = isinstance(extra, Kept) and leaf.path in before
            if kept and unmet(hparams, leaf.path) is None and before[leaf.path] != leaf.value:
                raise ConfigError(
                    f"--{leaf.path} {as_typed(leaf.value)}: a resumed run keeps "
                    f"{as_typed(before[leaf.path])}, because {extra.because}. Leave it out, or "
                    "start a new run."
                )


def active_settings(hparams: Hparams) -> dict[str, Any]:
    """Returns the settings this run reads, as a plain nested dict."""
    return nested(
        {leaf.path: leaf.value for leaf in leaves(hparams) if unmet(hparams, leaf.path) is None}
    )


def without_superseded(
    hparams: Hparams, below: Hparams, given: Collection[str]
) -> tuple[Hparams, list[str]]:
    """Takes settings of a file away that lose their effect by what is given on the command line.

    Args:
        hparams: of file and command line together.
        below: of the file alone; what has no effect even there stays, to be refused.
        given: dotted paths on the command line, which stay in any case.

    Returns:
        A copy, and a sentence for each setting that was taken away.
    """
    hparams, chosen, alone = deepcopy(hparams), choose_names(hparams), choose_names(below)
    sentences = []
    for leaf in leaves(hparams):
        reason = no_effect(chosen, leaf.path)
        if leaf.value == leaf.default or leaf.path in given or reason is None:
            continue
        if no_effect(alone, leaf.path) is None:
            set_leaf(hparams, leaf.path, leaf.default)
            sentences.append(f"{leaf.path} {as_typed(leaf.value)} no longer counts {reason}.")
    return hparams, sentences


def without_ineffective(hparams: Hparams) -> Hparams:
    """Returns a copy in which settings without effect have their defaults.

    For settings that once ran: earlier versions wrote some down that did nothing.
    """
    hparams = deepcopy(hparams)
    chosen = choose_names(hparams)
    for leaf in leaves(hparams):
        if unmet(chosen, leaf.path) is not None:
            set_leaf(hparams, leaf.path, leaf.default)
    return hparams
