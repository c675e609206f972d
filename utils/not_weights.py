"""Explains what a file is, if it cannot be read as weights."""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch

# What downloads give instead of weights, by the first bytes.
_INSTEAD = {
    b"version https://git-lfs": "a pointer of Git LFS, not the weights: git lfs pull fetches them",
    b"<": "a page of the web, not the weights: download the file itself",
    b"{": "text in JSON, such as the index of a file in several parts, not the weights",
    b"\x93NUMPY": "an array of NumPy, not a state dict",
    b"\x1f\x8b": "packed by gzip: unpack it (gunzip, tar xzf), and give what comes out",
}


_SUFFIXES = {".safetensors", ".bin", ".pth", ".pt", ".ckpt"}


def instead_of_none(file: Path) -> str:
    """Says what the name of a missing weight file may mean."""
    if file.is_dir():
        inside = sorted(each for each in file.iterdir() if each.suffix in _SUFFIXES)
        if inside:
            return f"It is a folder; did you mean {inside[0]}"
        return f"It is a folder; the weights of a run are run:{file}"
    if file.parts[:1] in (("http:",), ("https:",)):
        return "It is an address: download the file, and give its path"
    return "The weights of a run are run:NAME"


def first_bytes(file: Path) -> bytes:
    """Returns the first bytes of a file."""
    with file.open("rb") as opened:
        return opened.read(64)


def instead(file: Path) -> str | None:
    """Says what a file is instead of weights, by its first bytes; None if they do not tell."""
    begins = first_bytes(file).lstrip()
    found = (what for beginning, what in _INSTEAD.items() if begins.startswith(beginning))
    return next((f"{file} is {what}." for what in found), None)


def archive_instead(file: Path, parts: Sequence[str]) -> str | None:
    """Says what a zip archive is if torch.save has not written it; None if it may have.

    Args:
        file: for the message.
        parts: names of its parts.
    """
    ends = {name.rpartition("/")[2] for name in parts}
    if "constants.pkl" in ends:
        what = (
            "a program of TorchScript, not a state dict: "
            "torch.save(torch.jit.load(FILE).state_dict(), OTHER) writes one"
        )
    elif "data.pkl" in ends:
        return None
    elif parts and all(name.endswith(".npy") for name in parts):
        what = "an archive of NumPy arrays, not a state dict of torch"
    else:
        inside = f" of {', '.join(parts[:2])}" if parts else ""
        what = f"an archive{inside}, not a state dict: unpack it, and give the weights in it"
    return f"{file} cannot be read as weights: it is {what}."


def is_pickle(file: Path) -> bool:
    """Whether a file is a pickle, or an archive that contains one, as torch writes it."""
    if zipfile.is_zipfile(file):
        return True
    try:
        with file.open("rb") as opened:
            for _ in pickletools.genops(opened):
                pass
    except Exception:  # other bytes may raise anything
        return False
    return True


def foreign_names(file: Path) -> list[str]:
    """Returns the names of classes and functions in a pickle besides tensors and plain values.

    Empty for older layouts, where they cannot be listed.
    """
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except (ValueError, RuntimeError, pickle.UnpicklingError):
        return []


def refusal(file: Path) -> str:
    """Says why a pickle is not loaded."""
    names = foreign_names(file)
    what = f" ({', '.join(names[:4])})" if names else ""
    return (
        f"{file} is refused: it holds more than tensors and plain values{what}, and loading that "
        "could run code. Ask its author for a plain state dict, as torch.save(net.state_dict(), "
        "FILE) writes."
    )


def damage(file: Path) -> str:
    """Says what is wrong with a file that torch cannot read."""
    if not file.is_file():
        return f"{file} is no file."
    if what := instead(file):
        return what
    begins = first_bytes(file)
    if not begins:
        return f"{file} is damaged: it is empty."
    begins_as_zip = begins.startswith(b"PK\3\4")
    if begins_as_zip and not zipfile.is_zipfile(file):
        return f"{file} cannot be read: it ends too early; copy or download it again."
    return f"{file} cannot be read as weights: it is damaged, or torch.save has not written it."
