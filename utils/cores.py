"""The number of cores that a process may use. Imports no torch."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of control groups, version 2, as a container sees it


def usable_cores() -> int:
    """Returns the number of cores; schedulers and containers may allow fewer than there are."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    # Docker (--cpus) and Kubernetes show all cores, but limit their time.
    with suppress(OSError, ValueError):  # ValueError: "max" is no limit
        time, period = map(int, QUOTA.read_text().split())
        cores = min(cores, max(1, time // period))
    return cores
