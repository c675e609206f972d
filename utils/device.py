"""What the machine can do, and clear errors if it cannot do what was asked."""

from __future__ import annotations

import os
import shutil
import subprocess

import torch
from torch import Tensor

from utils.cores import usable_cores

_OLDER_TORCH = "pip install -r requirements-pascal.txt  (torch 2.7.1, built for CUDA 12.6)"
_DRIVER_FOR_CUDA_13 = 580
VOLTA, _AMPERE = (7, 0), (8, 0)  # the first with tensor cores; with bfloat16 and TF32


def check_accelerator(accelerator: str) -> None:
    """Raises if torch cannot use an NVIDIA card, instead of silently training on the CPU.

    Raises:
        ValueError: says what to install, or how to ask for the CPU.
    """
    if accelerator == "cpu":
        return
    if accelerator == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError("--trainer.accelerator mps: torch finds no Apple GPU. Use auto.")
        return
    if torch.cuda.is_available():
        _check_architecture()
        return
    if cards := nvidia_cards():
        raise ValueError(
            f"This machine has {cards[0]}, but torch {torch.__version__} cannot use it. "
            f"{_remedy()} Or train on the CPU: --trainer.accelerator cpu."
        )
    if accelerator == "gpu":
        raise ValueError(
            "--trainer.accelerator gpu: nvidia-smi shows no NVIDIA card here, or there is no "
            "driver. Use auto or cpu."
        )


def nvidia_cards() -> list[str]:
    """Returns the names of the NVIDIA cards the driver sees; empty without driver or card."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if answer.returncode == 0]


def _check_architecture() -> None:
    card = torch.cuda.get_device_capability()
    built = [name for name in torch.cuda.get_arch_list() if name.startswith(("sm_", "compute_"))]
    if not built or any(_runs_on(card, name) for name in built):
        return
    named = f"{torch.cuda.get_device_name()} (sm_{card[0]}{card[1]})"
    if card < min(_capability(name) for name in built):
        raise ValueError(
            f"{named} is too old for torch {torch.__version__}. Install: {_OLDER_TORCH}"
        )
    raise ValueError(
        f"torch {torch.__version__} has no code for {named}, but for {', '.join(built)}. Get "
        "another: pip install --upgrade torch. Or train on the CPU: --trainer.accelerator cpu."
    )


def _runs_on(card: tuple[int, int], name: str) -> bool:
    """Whether code for an architecture, as `get_arch_list` names it, runs on a card.

    Machine code (sm_) runs on cards of the same generation that are at least as new; PTX
    (compute_), which the driver compiles, on all that are at least as new. A name that ends in `a`
    is for exactly this capability, in `f` for this and newer ones of its generation.
    """
    least = _capability(name)
    if name.endswith("a"):
        return card == least
    same = card[0] == least[0]
    return card >= least and (same or (name.startswith("compute_") and not name.endswith("f")))


def _capability(name: str) -> tuple[int, int]:
    return divmod(int("".join(filter(str.isdigit, name))), 10)


def _remedy() -> str:
    built_for = torch.version.cuda
    if built_for is None:
        if os.name == "nt":
            return (
                "This torch is a CPU build, as are PyPI's for Windows: pytorch.org/get-started/"
                "locally has the command that installs one for CUDA."
            )
        return "This torch is a CPU build; reinstall it: pip install --force-reinstall torch."
    return (
        f"It is built for CUDA {built_for}: update the NVIDIA driver (CUDA 13 needs "
        f"{_DRIVER_FOR_CUDA_13} or newer; nvidia-smi shows yours), or install what older drivers "
        f"and cards such as the Tesla P100 can use: {_OLDER_TORCH}"
    )


def resolve_precision(precision: str, accelerator: str) -> str:
    """Resolves `auto`: bf16-mixed if the GPU has bfloat16, 16-mixed from Volta on, else 32-true.

    Raises:
        ValueError: 16-mixed on a CPU, for which Lightning would use bf16-mixed instead; or
            bf16-mixed on a GPU without bfloat16, which would emulate it slowly or fail.
    """
    device = best_device(accelerator).type
    if precision == "16-mixed" and device == "cpu":
        raise ValueError(
            "--trainer.precision 16-mixed needs a GPU. On a CPU: auto (32-true), or bf16-mixed."
        )
    if device != "cuda":
        return "32-true" if precision == "auto" else precision
    best = _best_precision()
    if precision == "bf16-mixed" and best != precision:
        raise ValueError(
            f"--trainer.precision bf16-mixed: {torch.cuda.get_device_name()} has no bfloat16. "
            f"Use auto ({best})."
        )
    return best if precision == "auto" else precision


def _best_precision() -> str:
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16-mixed"
    return "16-mixed" if torch.cuda.get_device_capability() >= VOLTA else "32-true"


def precision_here(precision: str, device: torch.device) -> str:
    """Returns the precision to evaluate a run in: its own if this machine has it, else 32-true.

    Args:
        precision: of the run; `auto` stays.
        device: used for the evaluation.
    """
    on_gpu = device.type == "cuda"
    if precision == "16-mixed":
        there = on_gpu and torch.cuda.get_device_capability() >= VOLTA
    elif precision == "bf16-mixed":
        there = not on_gpu or torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        there = True
    return precision if there else "32-true"


def is_mixed(precision: str) -> bool:
    """Whether passes run in half precision, with weights in float32."""
    return precision in ("bf16-mixed", "16-mixed")


def use_tensor_cores(precision: str, device: torch.device) -> bool:
    """Allows TF32 for float32 matrix products in half-precision runs, from Ampere on.

    Such runs use float32 for losses and statistics of features computed in half precision. TF32
    keeps float32's range and sums; factors are rounded to 10 bits, like float16's.

    Returns:
        Whether TF32 is allowed.
    """
    tf32 = (
        is_mixed(precision)
        and device.type == "cuda"
        and torch.cuda.get_device_capability() >= _AMPERE
    )
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32  # on by default for convolutions
    return tf32


def arithmetic(device: torch.device) -> dict[str, str | bool]:
    """Returns what affects float32 passes besides the network: the device, and TF32.

    Empty for a CPU, so that caches made before this was recorded count as those of a CPU.
    """
    if device.type == "cpu":
        return {}
    return {
        "device": device.type,
        "tf32_matrices": torch.get_float32_matmul_precision() != "highest",
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
    }


def check_compiles(device: torch.device) -> None:
    """Checks that torch.compile supports the card.

    Raises:
        ValueError: the card is older than Volta.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability() < VOLTA:
        raise ValueError(
            f"--trainer.compile true: {torch.cuda.get_device_name()} is too old for it (needs "
            "compute capability 7.0 or newer). Leave it out."
        )


def use_same_numbers(wanted: bool, device: torch.device) -> None:
    """Forbids or allows attention kernels whose gradients sum in any order.

    PyTorch uses their deterministic variants only if everything non-deterministic is an error, and
    the gradient of bicubic interpolation on a GPU would be one.

    Args:
        wanted: whether to forbid them, see `run.deterministic`.
        device: of the training; on a CPU all kernels are deterministic.
    """
    allowed = not (wanted and device.type == "cuda")
    torch.backends.cuda.enable_flash_sdp(allowed)
    torch.backends.cuda.enable_mem_efficient_sdp(allowed)
    torch.backends.cuda.enable_cudnn_sdp(allowed)


def use_own_gpu() -> None:
    """Makes this process's own card the current one, as Lightning does later.

    Until then memory is measured and features are computed, which would all use the first card.
    """
    # Set by torchrun and Lightning; by srun.
    rank = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID", "")
    if rank.isdigit() and int(rank) < torch.cuda.device_count():
        torch.cuda.set_device(int(rank))


def device_name(accelerator: str) -> str:
    """Returns the name of the device that the run trains on."""
    device = best_device(accelerator)
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return "Apple GPU" if device.type == "mps" else f"CPU, {torch.get_num_threads()} threads"


def usable_device(accelerator: str) -> torch.device:
    """Returns `best_device`, after checking that torch can use it.

    Also limits torch's threads to the cores that this process may use.

    Raises:
        ValueError: see `check_accelerator`.
    """
    check_accelerator(accelerator)
    # torch counts the cores of the machine, of which a container may have few.
    if (cores := usable_cores()) < torch.get_num_threads():
        torch.set_num_threads(cores)
    return best_device(accelerator)


def best_device(accelerator: str) -> torch.device:
    """Returns the NVIDIA GPU if allowed and present, else the CPU; Apple's only if asked for.

    Lightning gets its `type`, because Lightning's own `auto` would choose Apple's GPU.
    """
    if accelerator == "mps":
        return torch.device("mps")
    usable = accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if usable else "cpu")


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor on a device, without waiting for the copy where that is safe.

    To Apple's GPU a copy that is not awaited may read memory that the host has used again since
    (github.com/pytorch/pytorch/issues/189690).
    """
    return tensor.to(device, non_blocking=device.type == "cuda")
