"""Records what a run was made with: code, packages, machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import datetime
from pathlib import Path

from utils.files import write_atomically
from utils.run_folder import RunFolder

_PACKAGES = (
    "torch torchvision pytorch-lightning timm simple-parsing wandb rich torchmetrics matplotlib "
    "seaborn vit-pytorch segmentation-models-pytorch numpy pillow "
    "opencv-python-headless"
)
_ROOT = Path(__file__).parents[1]
# Where new files belong to the code; elsewhere may be anything, such as a virtual environment.
_CODE = ("agents", "callbacks", "config", "datamodules", "models", "utils")


def record_environment(folder: RunFolder, device: str) -> None:
    """Writes environment.json, and code.patch if the code differs from the commit."""
    status = _git(_ROOT, "status", "--porcelain")
    environment = {
        "name": folder.name,
        "command": [Path(sys.executable).name, *sys.argv],
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git_commit": _git(_ROOT, "rev-parse", "HEAD").decode().strip() or None,
        "git_dirty": bool(status),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "packages": {name: _version(name) for name in _PACKAGES.split()},
    }
    if status:
        write_atomically(folder.path / "code.patch", changes(_ROOT))
    folder.write_environment(environment)


def changes(repository: Path) -> bytes:
    """Returns the difference to the commit as a patch: tracked files, and new files of code."""
    new = _git(repository, "ls-files", "-z", "--others", "--exclude-standard", "--", *_CODE)
    paths = [os.fsdecode(path) for path in new.split(b"\0") if path]
    diff = ("diff", "--binary", "--no-color", "--no-ext-diff")
    beside = (_git(repository, *diff, "--no-index", "--", "/dev/null", path) for path in paths)
    return b"".join([_git(repository, *diff, "HEAD"), *beside])


def _git(repository: Path, *arguments: str) -> bytes:
    command = ["git", "-C", str(repository), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return answer.stdout if answer.returncode <= 1 else b""  # 1: two files differ


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
