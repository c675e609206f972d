"""Digests of what determines a result, under which it is stored and found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor


def facts_digest(facts: Any) -> str:
    """Returns a short hash of facts that JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


def file_facts(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Returns name, size and modification time of each file: changed files need a new cache."""
    stats = [(file, file.stat()) for file in files]
    return [(file.name, stat.st_size, stat.st_mtime_ns) for file, stat in stats]


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns a hash of tensors and their names, such as a state dict."""
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
