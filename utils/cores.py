"""How many cores a process may use, of those that there are. Imports no torch."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_RATION = Path("/sys/fs/cgroup/cpu.max")  # of control groups, version 2, as a container sees it


def usable_cores() -> int:
    """Returns those that this process may use: under a scheduler or in a container not all."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    # Docker (--cpus) and Kubernetes show all, and ration their time.
    with suppress(OSError, ValueError):  # "max": they do not
        time, period = map(int, _RATION.read_text().split())
        cores = min(cores, max(1, time // period))  # more would wait, and all for them
    return cores
