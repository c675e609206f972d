"""Reads checkpoints of runs: whole and finite, the one to resume from and the one to judge."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from utils.console import console
from utils.run_folder import RunFolder
from utils.weight_files import check_finite, map_checkpoint, read_checkpoint, tensors_in

# The types of the entries of a run's checkpoint, and of the items of those that are containers;
# first the entries that all checkpoints have.
_NEEDED: dict[str, type] = {"state_dict": Mapping, "hyper_parameters": Mapping, "global_step": int}
_ENTRIES: dict[str, tuple[type, type | None]] = {
    "callbacks": (Mapping, Mapping),
    "classes": (list, str),
    "epoch": (int, None),
    "loops": (Mapping, Mapping),
    "lr_schedulers": (list, Mapping),
    "optimizer_states": (list, Mapping),
    "pytorch-lightning_version": (str, None),
}


def read_run_checkpoint(file: Path) -> Mapping[str, Any]:
    """Loads a checkpoint of a run; otherwise like `read_checkpoint`.

    Raises:
        ValueError: it is something else.
    """
    return _of_a_run(read_checkpoint(file), file)


def map_run_checkpoint(file: Path) -> Mapping[str, Any]:
    """Does what `read_run_checkpoint` does, but reads tensors from disk only when used.

    Raises:
        ValueError: it is damaged, or something else.
    """
    return _of_a_run(map_checkpoint(file), file)


def _of_a_run(found: Any, file: Path) -> Mapping[str, Any]:
    parts = found if isinstance(found, Mapping) else {}
    lacking = [name for name, kind in _NEEDED.items() if not isinstance(parts.get(name), kind)]
    if lacking:
        raise ValueError(f"{file} is no checkpoint of a run: it has no {' and '.join(lacking)}.")
    others = [key for key, value in parts["state_dict"].items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(f"{file} is no checkpoint of a run: its {others[0]} is no tensor.")
    for name, (kind, held) in _ENTRIES.items():
        if name in parts and not _is_sound(parts[name], kind, held):
            raise ValueError(
                f"{file} is damaged: its {name} are not those of a checkpoint, but "
                f"{reprlib.repr(parts[name])}."
            )
    return parts


def _is_sound(entry: Any, kind: type, held: type | None) -> bool:
    is_of_its_kind = isinstance(entry, kind)
    if not is_of_its_kind or held is None:
        return is_of_its_kind
    items = entry.values() if isinstance(entry, Mapping) else entry
    return all(isinstance(each, held) for each in items)


def resumable(folder: RunFolder) -> Path | None:
    """Returns the checkpoint to resume from: the last, or the previous one if that is damaged.

    Returns:
        None when the run has no checkpoint yet.

    Raises:
        ValueError: none of them can be read; names them.
    """
    found, damage = _first_readable(folder.last, folder.previous)
    if damage and found is None:
        raise ValueError(
            f"--run.resume {folder.path}: no checkpoint to go on from. {' '.join(damage)} "
            f"Put one of this run back{or_best(folder)}, or start anew under another --run.name."
        )
    for reason in damage:
        console.warning("%s Going on from the one before it, %s.", reason, found)
    return found


def or_best(folder: RunFolder) -> str:
    """Returns the advice to resume from the best checkpoint, if that can be read."""
    found, _ = _first_readable(folder.best)
    return f", or copy {found} to {folder.last}" if found else ""


def best_or_last(folder: RunFolder) -> Path:
    """Returns the best checkpoint by validation; the last if there is none or it is damaged.

    Both may be one file: if that is damaged, returns the previous one.

    Returns:
        `last.ckpt`, which may not exist, if there is no checkpoint.

    Raises:
        ValueError: none of them can be read; names them.
    """
    found, damage = _first_readable(folder.best, folder.last, folder.previous)
    if damage and found is None:
        raise ValueError(" ".join(damage))
    for reason in damage:
        console.warning("%s %s is used instead.", reason, found)
    return found or folder.last


def check_weights(file: Path, checkpoint: Mapping[str, Any], optimizer: bool = False) -> None:
    """Checks that the weights of a run's checkpoint are finite.

    Args:
        file: in the folder of a run.
        checkpoint: its content.
        optimizer: also check the optimizer's state, which the next step adds to the weights.

    Raises:
        ValueError: some are not; names the newest checkpoint beside it that is finite.
    """
    try:
        _check_numbers(file, checkpoint, optimizer)
    except ValueError as error:
        folder = RunFolder.around(file)
        others = [each for each in (folder.last, folder.previous, folder.best) if each.is_file()]
        sound = next((each for each in others if not broken(each, optimizer)), None)
        remedy = f" {sound} has none: remove {file.name}, and copy that to its place."
        raise ValueError(f"{error}{remedy if sound else ''}") from error


def _check_numbers(file: Path, checkpoint: Mapping[str, Any], optimizer: bool) -> None:
    check_finite(checkpoint["state_dict"], str(file))
    name = "optimizer_states"
    if optimizer and any(each.get("state") for each in checkpoint.get(name, ())):
        check_finite(tensors_in({name: checkpoint[name]}, str(file)), str(file))


def broken(file: Path, optimizer: bool = False) -> str:
    """Says what is wrong with a checkpoint or its weights; empty if nothing is."""
    try:
        _check_numbers(file, map_run_checkpoint(file), optimizer)
    except ValueError as error:
        return str(error)
    return ""


def _first_readable(*files: Path) -> tuple[Path | None, list[str]]:
    """Returns the first file that can be read, and what is wrong with those before it."""
    damage: list[str] = []
    for file in files:
        if not file.exists():
            continue
        try:
            map_run_checkpoint(file)
        except ValueError as error:
            damage.append(str(error))
            continue
        return file, damage
    return None, damage
