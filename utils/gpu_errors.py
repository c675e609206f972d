"""What the errors of a GPU mean, and what to do about them."""

from __future__ import annotations

from utils.text import one_line

# Parts of what CUDA, cuDNN and cuBLAS say, in lower case. Exhausted memory is not among them: see
# `utils.memory.is_out_of_memory`.
_MEANINGS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("busy or unavailable",),
        "The GPU lets nobody else in: another program has it for itself, or it hangs. nvidia-smi "
        "names the programs: end them, or take another card (CUDA_VISIBLE_DEVICES=1). Where there "
        "are none, restart the machine.",
    ),
    (
        ("driver version is insufficient", "nvidia driver on your system is too old"),
        "The NVIDIA driver is older than this torch needs: update it, or pip install -r "
        "requirements-pascal.txt.",
    ),
    (
        ("no kernel image is available", "device kernel image is invalid"),
        "This torch has no code for this card. For an older card: pip install -r "
        "requirements-pascal.txt; for a newer one: pip install --upgrade torch.",
    ),
    (
        ("cudnn_status_not_initialized", "cublas_status_not_initialized"),
        "cuDNN or cuBLAS cannot begin, most often because other programs hold the GPU's memory "
        "(nvidia-smi names them), else because LD_LIBRARY_PATH names a CUDA of the system's: "
        "unset it.",
    ),
    (
        ("device-side assert triggered",),
        "A number on the GPU lies outside its range, such as a label beyond the classes of a part "
        "of your own. On the CPU the error says where: --trainer.accelerator cpu.",
    ),
    (
        ("uncorrectable ecc error", "uncorrectable nvlink error"),
        "The GPU's memory is broken at some place: restart the machine. Where that comes again the "
        "card is to be replaced.",
    ),
    (
        (
            *("an illegal memory access", "unspecified launch failure", "misaligned address"),
            *("launch timed out", "cuda error: unknown error", "gpu is lost"),
        ),
        "The GPU, or its driver, has failed. It happens to cards that are overclocked or too hot, "
        "after the machine has slept, and with faulty drivers. Start it again; where that fails at "
        "once, restart the machine.",
    ),
)


def gpu_failure(error: BaseException) -> str | None:
    """Says what an error of the GPU means, and what to do; None where it is none that is known."""
    text = str(error).lower()
    for parts, meaning in _MEANINGS:
        if isinstance(error, RuntimeError) and any(part in text for part in parts):
            return f"{meaning} ({one_line(str(error).splitlines()[0], 200)})"
    return None
