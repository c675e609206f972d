"""Adds a user's own parts to the tables of `config/names.py`, for as long as Python runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import pytorch_lightning as pl

from config import names
from config.settings_tree import read_tables_anew
from datamodules.sources import ImageSource, MaskedSource
from models.backbones.base import AttentionBackbone

# Tables by the setting that chooses from them. No tasks: a method needs settings of its own.
_TABLES: dict[str, dict[str, str]] = {
    "backbone.name": names.BACKBONES,
    "data.name": names.DATASETS,
    "segmentation.head": names.HEADS,
    "segmentation.fusion": names.FUSIONS,
    "segmentation.loss": names.LOSSES,
    "optim.name": names.OPTIMIZERS,
    "optim.schedule": names.SCHEDULES,
}
_TAKEN = {"auto", *names.BACKBONE_ALIASES, *names.FUSION_ALIASES}


def add_part(setting: str, name: str, part: Callable[..., Any]) -> None:
    """Adds something that can be chosen by name, as a line of `config/names.py` does.

    Args:
        setting: the setting that chooses it, such as `backbone.name`.
        name: its name there.
        part: a class or a function, at the top of a file or of a notebook's cell. A function that
            builds a backbone with attention is annotated `-> AttentionBackbone`.

    Raises:
        ValueError: there is no such setting, or the name or the part is not possible.
    """
    if setting not in _TABLES:
        raise ValueError(f"add_part {setting}: expected one of {', '.join(_TABLES)}.")
    if setting == "data.name" and not _is_kind(part, ImageSource):
        raise ValueError(f"data.name {name}: expected a subclass of ImageSource.")
    target = _target(setting, name, part, _TABLES[setting].get(name))
    if setting == "data.name":
        names.WITHOUT_MASKS = _noted(names.WITHOUT_MASKS, name, _is_kind(part, MaskedSource))
    if setting == "backbone.name":
        made = part if isinstance(part, type) else get_type_hints(part).get("return")
        has_attention = _is_kind(made, AttentionBackbone)
        names.WITHOUT_ATTENTION = _noted(names.WITHOUT_ATTENTION, name, has_attention)
    _TABLES[setting][name] = target
    read_tables_anew()


def add_callback(
    name: str, callback: type[pl.Callback], tasks: Sequence[str] = names.PRETRAINING
) -> None:
    """Adds a callback, built with its default arguments, to every training of these tasks.

    Args:
        name: what messages call it.
        callback: a class, at the top of a file or of a notebook's cell.
        tasks: those to observe.

    Raises:
        ValueError: the name, the class or a task is not possible.
    """
    if not _is_kind(callback, pl.Callback):
        raise ValueError(f"callbacks {name}: expected a subclass of Lightning's Callback.")
    if unknown := sorted(set(tasks) - names.TASKS.keys()):
        raise ValueError(
            f"callbacks {name}: there is no task {unknown[0]}, only {', '.join(names.TASKS)}."
        )
    known = names.CALLBACKS.get(name)
    target = _target("callbacks", name, callback, known and known.target)
    names.CALLBACKS[name] = names.Callback(target, tuple(tasks))


def _noted(without: tuple[str, ...], name: str, has: bool) -> tuple[str, ...]:
    """Returns the names of parts without a feature; `name` is one of them unless it `has` it."""
    others = tuple(each for each in without if each != name)
    return others if has else (*others, name)


def _is_kind(part: object, kind: type) -> bool:
    return isinstance(part, type) and issubclass(part, kind)


def _target(setting: str, name: str, part: Callable[..., Any], known: str | None) -> str:
    """Returns the `module:name` of a part, which stays valid when its cell runs again."""
    if not name.isidentifier():
        raise ValueError(f"{setting} {name}: expected a name such as my_part.")
    module, attribute = part.__module__, getattr(part, "__qualname__", "")
    if getattr(sys.modules.get(module), attribute, None) is not part:
        raise ValueError(
            f"{setting} {name}: {part} is not found as {module}.{attribute}. Define it at the top "
            "of a file or of a cell."
        )
    target = f"{module}:{attribute}"
    if name in _TAKEN or known not in (None, target):
        raise ValueError(f"{setting} {name} exists already. Choose another name.")
    return target
