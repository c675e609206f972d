"""What a run was made with: code, packages, machine."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from datetime import datetime
from pathlib import Path

from utils.files import write_atomically
from utils.run_folder import RunFolder, write_environment

_PACKAGES = (
    "torch torchvision pytorch-lightning timm simple-parsing wandb rich torchmetrics matplotlib "
    "seaborn vit-pytorch segmentation-models-pytorch numpy pillow "
    "opencv-python-headless"
)


def record_environment(folder: RunFolder, device: str) -> None:
    """Writes environment.json, and code.patch when the code differs from the commit."""
    status = _git("status", "--porcelain")
    environment = {
        "name": folder.name,
        "command": [Path(sys.executable).name, *sys.argv],
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git_commit": _git("rev-parse", "HEAD") or None,
        "git_dirty": bool(status),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "packages": {name: _version(name) for name in _PACKAGES.split()},
    }
    if status:
        write_atomically(folder.path / "code.patch", _git("diff", "HEAD") + "\n")
    write_environment(folder, environment)


def _git(*arguments: str) -> str:
    try:
        root = Path(__file__).parents[1]
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
