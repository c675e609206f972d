"""Reads back what a run of wandb that was kept offline holds: a log of protobuf records.

The file is a LevelDB log: blocks of 32 KiB, and in them pieces of records, each behind its checksum
(4 bytes), length (2) and kind (1: whole, 2: first, 3: middle, 4: last). Seven bytes open the file.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as pb

_BLOCK, _HEADER = 32 * 1024, 7


@dataclass
class Offline:
    """What the file of one start of a run holds."""

    run: Any = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    output: str = ""

    @property
    def seen(self) -> set[str]:
        """The keys of all rows."""
        return {key for row in self.rows for key in row}

    def media(self, kind: str) -> list[dict[str, Any]]:
        """Rows with something of a kind that begins so, such as `image`."""
        return [
            row
            for row in self.rows
            if any(
                str(v.get("_type", "")).startswith(kind) for v in row.values() if type(v) is dict
            )
        ]


def read_offline(folder: Path) -> list[Offline]:
    """Reads every start of the run in a folder, in order."""
    return [_read(file) for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]


def _read(file: Path) -> Offline:
    found = Offline()
    for content in _records(file.read_bytes()):
        record = pb.Record()
        record.ParseFromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            found.config |= _items(record.run.config.update)
        elif kind == "history":
            found.rows.append(_items(record.history.item))
        elif kind == "metric":
            found.metrics[record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "config":
            found.config |= _items(record.config.update)
        elif kind == "summary":
            found.summary |= _items(record.summary.update)
        elif kind == "files":
            found.files |= {each.path for each in record.files.files}
        elif kind == "output_raw":
            found.output += record.output_raw.line
    return found


def _items(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        *parents, last = item.nested_key or [item.key]
        inner = found
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = json.loads(item.value_json)
    return found


def _records(content: bytes) -> Iterator[bytes]:
    assert content.startswith(b":W&B")
    place, record = _HEADER, b""
    while place + _HEADER <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:
            place += left
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + _HEADER])
        record += content[place + _HEADER : place + _HEADER + length]
        place += _HEADER + length
        if kind in (1, 4):
            yield record
            record = b""
