"""Reads weight files of every common layout, without running code in them."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from utils.console import console
from utils.not_weights import (
    archive_instead,
    damage,
    first_bytes,
    foreign_names,
    instead,
    instead_of_none,
    is_pickle,
    refusal,
)
from utils.stand_ins import read_without_classes

_FLOAT8 = {dtype for name, dtype in vars(torch).items() if name.startswith("float8_")}

Source = Callable[[], dict[str, Tensor]]  # fetches public weights


def read_weights(file: Path) -> dict[str, Tensor]:
    """Reads the tensors of any weight file; see `read_checkpoint` and `tensors_in`.

    Everything else in it, such as settings, is skipped without loading it.
    """
    return tensors_in(read_checkpoint(file, without_classes=True), str(file))


def read_checkpoint(file: Path, without_classes: bool = False) -> Any:
    """Loads a file with torch's safe unpickler, or a safetensors file.

    The only additional class it allows is `argparse.Namespace`, which official checkpoints contain.

    Args:
        file: of weights.
        without_classes: skip objects of other classes, see `read_without_classes`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a weight file, or loading it would run code.
    """
    if not file.is_file():
        raise FileNotFoundError(f"There is no weight file {file}. {instead_of_none(file)}.")
    if file.suffix.lower() == ".safetensors" or _is_safetensors(file):
        return _read_safetensors(file)
    _check_sums(file)
    return _load(file, without_classes=without_classes)


def map_checkpoint(file: Path) -> Any:
    """Does what `read_checkpoint` does, but reads tensors from disk only when they are used.

    Raises:
        ValueError: it is damaged, or would run code when loaded; names it.
    """
    _check_sums(file)
    return _load(file, mmap=True)


def _check_sums(file: Path) -> None:
    """Verifies the CRC-32 sums of a zip archive of torch, which torch itself never reads.

    Raises:
        ValueError: a byte has changed, or it is another kind of archive.
    """
    try:
        if not zipfile.is_zipfile(file):
            return  # an old format, or truncated: loading it will tell
        with zipfile.ZipFile(file) as archive:
            damaged, parts = archive.testzip(), archive.namelist()
    except Exception as error:  # a changed byte in the directory may raise anything
        raise ValueError(f"{file} is damaged: {error}.") from error
    if damaged is not None:
        raise ValueError(f"{file} is damaged: the checksum of its part {damaged} is wrong.")
    if what := archive_instead(file, parts):
        raise ValueError(what)


def _load(file: Path, mmap: bool = False, without_classes: bool = False) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
        except Exception as error:  # with a damaged file, the unpickler may raise anything
            refused = isinstance(error, pickle.UnpicklingError) and is_pickle(file)
            if refused and without_classes:
                found = read_without_classes(file, foreign_names(file))
                if found is not None:
                    return found
            # Not torch's message, which advises to load code that could be harmful.
            raise ValueError(refusal(file) if refused else damage(file)) from error


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(
            instead(file)
            or f"{file} cannot be read: it ends too early or is no safetensors file ({error}); "
            "copy or download it again."
        ) from error


def _is_safetensors(file: Path) -> bool:
    # It begins with the length of a JSON header. The file may have any name.
    begins = first_bytes(file)
    length = int.from_bytes(begins[:8], "little")
    return begins[8:9] == b"{" and length < file.stat().st_size


def tensors_in(checkpoint: Any, source: str) -> dict[str, Tensor]:
    """Finds all tensors of a checkpoint, at any depth of containers.

    Returns:
        By the names of the containers and the tensor, joined by dots: `state_dict.fc.weight`.

    Raises:
        ValueError: there are no tensors, or they are of a kind that few operators support.
    """
    try:
        tensors = dict(_walk(checkpoint, ""))
    except RecursionError as error:
        raise ValueError(f"{source} is not loaded: a container in it contains itself.") from error
    for name, tensor in tensors.items():
        if type(tensor) not in (Tensor, nn.Parameter):
            raise ValueError(
                f"{source} is not loaded: {name} is a {type(tensor).__name__}, such as a part of a "
                "network that several processes share. Write whole, plain tensors into a file."
            )
        plain = tensor.layout == torch.strided and tensor.dtype not in _FLOAT8
        if not plain or tensor.is_quantized or tensor.is_meta:
            where = ", without values" if tensor.is_meta else ""
            raise ValueError(
                f"{source} is not loaded: {name} is {tensor.layout}, {tensor.dtype}{where}. Write "
                "plain tensors of 16 bits or more into a file of their own."
            )
    if not tensors:
        raise ValueError(f"{source} holds no weights: expected a state dict of tensors.")
    return tensors


def _walk(node: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(node, Tensor):
        yield name, node
    elif isinstance(node, Mapping | list | tuple):  # a list such as [weights, optimizer]
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from _walk(value, f"{name}.{key}" if name else str(key))


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Checks that weights are finite.

    Raises:
        ValueError: there are NaN or infinity; names the first such tensor.
    """
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(
            f"{source} is not loaded: {len(broken)} of {len(tensors)} tensors are NaN or infinite "
            f"in places (first {broken[0]}): the run that wrote it had diverged."
        )


def download(url: str) -> dict[str, Tensor]:
    """Downloads official weights to torch's cache, unless they are there.

    Raises:
        ValueError: the download fails, or the file is damaged; names the file to fetch by hand or
            to remove.
    """
    file = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)
    if not file.exists():
        begins = torch.hub.HASH_REGEX.search(file.name)  # of the SHA-256, if the name has it
        console.info("downloading %s to %s", url, file)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), begins[1] if begins else None)
        except (OSError, RuntimeError) as error:  # RuntimeError: wrong hash
            raise ValueError(
                f"Could not download {url} ({error}). Fetch it by hand and pass its path: "
                "--backbone.weights FILE (or --segmentation.head_weights FILE)."
            ) from error
    try:
        checkpoint = read_checkpoint(file)
    except ValueError as error:
        raise ValueError(f"{error} Remove it, and it is fetched again.") from error
    return tensors_in(checkpoint, url)
