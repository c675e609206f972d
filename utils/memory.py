"""Peak and available memory of the device that trains."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from contextlib import suppress
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")  # version 2, as seen inside a container
_MUCH = 0.25  # of a GPU's memory; CUDA itself and a desktop take less


def reset_peak(device: torch.device) -> None:
    """Resets the peak; no effect on systems that do not support it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        with suppress(OSError):
            _CLEAR.write_text("5")


def peak_mb(device: torch.device) -> float:
    """Peak memory in MiB since `reset_peak`: allocated on the GPU, else resident on the host.

    0 if it is not known.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if _STATUS.exists():
        return _kilobytes(_STATUS, "VmHWM") / 1024
    try:
        import resource  # not on Windows
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is exhausted, on the GPU or the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    words = ["out of memory", "can't allocate", "_status_alloc_failed"]  # the last of cuBLAS
    # cuDNN, when the workspace of no algorithm fits.
    words += ["unable to find an engine", "unable to find a valid cudnn algorithm"]
    return isinstance(error, RuntimeError) and any(each in text for each in words)


def free_unused(device: torch.device) -> None:
    """Frees unused memory: reference cycles, and torch's cache on a GPU."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def free_mb(device: torch.device) -> float:
    """Memory in MiB that a training could still allocate on its device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**20
    return available_mb()


def held_by_others(device: torch.device) -> str:
    """Returns a sentence if other programs hold much of a GPU's memory, else an empty string."""
    if device.type != "cuda":
        return ""
    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError:  # not enough memory to start CUDA
        return " Other programs hold the GPU's: nvidia-smi names them."
    others = total - free - torch.cuda.memory_reserved(device)
    if others < _MUCH * total:
        return ""
    held, whole = (f"{size / 2**30:.1f}" for size in (others, total))
    return f" Other programs hold {held} of the GPU's {whole} GiB: nvidia-smi names them."


def available_mb() -> float:
    """Memory in MiB this process could still allocate on the CPU; infinite if not known."""
    if not _MEMINFO.exists():
        return float("inf")
    available = _kilobytes(_MEMINFO, "MemAvailable") / 1024
    limit, used = (_CGROUP / name for name in ("memory.max", "memory.current"))
    if limit.exists() and used.exists() and limit.read_text().strip().isdigit():
        held = int(used.read_text()) - _reclaimable()
        available = min(available, (int(limit.read_text()) - held) / 2**20)
    return available


def _reclaimable() -> int:
    # Bytes of cached files, such as images: they count as used, but are freed when needed.
    stat = _CGROUP / "memory.stat"
    match = re.search(r"^inactive_file (\d+)", stat.read_text(), re.M) if stat.exists() else None
    return int(match[1]) if match else 0


def resident_mb() -> float:
    """Memory in MiB this process holds now; 0 if not known."""
    return _kilobytes(_STATUS, "VmRSS") / 1024 if _STATUS.exists() else 0.0


def return_freed_memory() -> None:
    """Returns freed memory that glibc still holds to the system; no effect without glibc.

    A few small arrays that stay between large temporary ones make glibc's heap grow without limit:
    it cannot reuse the holes, and does not return them by itself.
    """
    if _LIBC is not None:
        _LIBC.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return library if hasattr(library, "malloc_trim") else None


_LIBC = _glibc()


def _kilobytes(file: Path, name: str) -> float:
    match = re.search(rf"{name}:\s+(\d+) kB", file.read_text())
    return float(match.group(1)) if match else 0.0
