"""Reads weight files of every common layout, without running code they may carry."""

from __future__ import annotations

import argparse
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Where a checkpoint of this kind keeps the network: official DINO (teacher first: the better one),
# Lightning, official Barlow Twins.
_CONTAINERS = ("teacher", "student", "state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")

# What Python and torch raise on files that are cut or changed.
_OF_DAMAGE = (RuntimeError, EOFError, KeyError, OSError, UnicodeDecodeError, NotImplementedError)

Source = Callable[[], dict[str, Tensor]]  # fetches public weights


def read_checkpoint(file: Path) -> Any:
    """Loads a file with torch's safe unpickler, or a safetensors file.

    `argparse.Namespace`, which official checkpoints carry, is the only class allowed in addition.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a weight file, or one that would run code when loaded.
    """
    if not file.is_file():
        raise FileNotFoundError(f"There is no weight file {file}.")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    _check_sums(file)
    return _load(file)


def read_run_checkpoint(file: Path) -> Mapping[str, Any]:
    """Loads a checkpoint that a run has left; otherwise as `read_checkpoint`.

    Raises:
        ValueError: it is something else.
    """
    found = read_checkpoint(file)
    state = found.get("state_dict") if isinstance(found, Mapping) else None
    if not isinstance(state, Mapping) or "global_step" not in found:
        raise ValueError(f"{file} is no checkpoint of a run: it has no state_dict and step.")
    return found


def check_readable(file: Path) -> None:
    """Reads a checkpoint as `read_checkpoint` does, without keeping its tensors in memory.

    Raises:
        ValueError: it is damaged, or would run code when loaded; names it.
    """
    _check_sums(file)
    _load(file, mmap=True)


def _check_sums(file: Path) -> None:
    """Compares a zip archive, as torch writes, with its CRC-32 sums, which torch never reads.

    Raises:
        ValueError: a byte of it has changed.
    """
    try:
        if not zipfile.is_zipfile(file):
            return  # a format of old, or cut: loading it will tell
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except Exception as error:  # whatever a changed byte of the directory leads to
        raise ValueError(f"{file} is damaged: {error}.") from error
    if damaged is not None:
        raise ValueError(f"{file} is damaged: the checksum of its part {damaged} is wrong.")


def _load(file: Path, mmap: bool = False) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
        except Exception as error:  # a damaged file makes the unpickler trip over anything
            # Not in torch's words, which advise to load what could run code.
            refused = isinstance(error, pickle.UnpicklingError) and _is_pickle(file)
            raise ValueError(_refusal(file) if refused else _damage(file)) from error


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(
            f"{file} cannot be read: it ends too early or is no safetensors file ({error}); copy "
            "or download it again."
        ) from error


def _is_pickle(file: Path) -> bool:
    if zipfile.is_zipfile(file):  # torch's own layout, which has one inside
        return True
    try:
        with file.open("rb") as opened:
            for _ in pickletools.genops(opened):
                pass
    except Exception:  # whatever a stream of other bytes leads to
        return False
    return True


def _refusal(file: Path) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except (ValueError, RuntimeError):  # an older layout, in which they cannot be listed
        names = []
    what = f" ({', '.join(sorted(names)[:4])})" if names else ""
    return (
        f"{file} is refused: it holds more than tensors and plain values{what}, and loading that "
        "could run code. Ask its author for a plain state dict."
    )


def _damage(file: Path) -> str:
    with file.open("rb") as opened:
        begins = opened.read(4)
    if not begins:
        return f"{file} is damaged: it is empty."
    begins_as_zip = begins == b"PK\3\4"
    if begins_as_zip and not zipfile.is_zipfile(file):
        return f"{file} cannot be read: it ends too early; copy or download it again."
    return f"{file} cannot be read as weights: it is damaged, or torch.save has not written it."


def tensors_in(checkpoint: Any, source: str) -> dict[str, Tensor]:
    """Finds the tensors in a checkpoint of any known layout, whole networks included.

    Raises:
        ValueError: no tensors in it.
    """
    state = checkpoint
    for container in _CONTAINERS:
        if isinstance(state, Mapping) and isinstance(state.get(container), Mapping):
            state = state[container]
            break
    tensors = {
        str(key): value
        for key, value in (state.items() if isinstance(state, Mapping) else ())
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise ValueError(f"{source} holds no weights: expected a state dict of tensors.")
    for wrapper in _WRAPPERS:
        tensors = {key.removeprefix(wrapper): value for key, value in tensors.items()}
    return tensors


def network_state(checkpoint: Any, source: str) -> dict[str, Tensor]:
    """Finds the backbone's tensors in a checkpoint of any known layout.

    Returns:
        A flat state dict without wrapper prefixes; heads stored beside a backbone are left out.

    Raises:
        ValueError: no tensors in it.
    """
    tensors = tensors_in(checkpoint, source)
    for prefix in ("backbone.net.", "backbone."):
        inner = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if inner:
            return inner
    return tensors


def download(url: str) -> dict[str, Tensor]:
    """Fetches the backbone of official weights into torch's cache; otherwise `download_all`."""
    return network_state(download_all(url), url)


def download_all(url: str) -> dict[str, Tensor]:
    """Fetches official weights into torch's cache.

    Raises:
        ValueError: they cannot be fetched; the message names the file to get by hand.
    """
    try:
        checkpoint = torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(
            f"Could not download {url} ({error}). Fetch it by hand and pass its path: "
            "--backbone.weights FILE (or --segmentation.head_weights FILE)."
        ) from error
    return tensors_in(checkpoint, url)
