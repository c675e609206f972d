"""How Lightning writes and reads checkpoints here: there is always a sound one to go back to."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from utils.console import console
from utils.files import replacing
from utils.run_checkpoints import broken, check_weights
from utils.run_folder import RunFolder
from utils.weight_files import map_checkpoint, read_checkpoint

Contents = list[tuple[str, int, int]]  # name, size and CRC-32 of each part of an archive


class RunCheckpoints(CheckpointIO):
    """Writes a checkpoint to a temporary file, reads it back, and then replaces the old one.

    Lightning's own writes via $TMPDIR. If that is on another file system, moving the file means
    copying over the only checkpoint. Here `last.ckpt` becomes `previous.ckpt` when it is replaced,
    unless this process has neither written nor read it, as it may be damaged. If the newest epoch
    is the best, both checkpoints are one file with two names.

    Args:
        folder: of the run.
        before_saving: called before each checkpoint, to write what must be on disk by then.
        chooses_anew: forget the best result so far, as it is not comparable with the next ones.
        other_loss: forget the measured gradients, as they are not comparable either.
    """

    def __init__(
        self,
        folder: RunFolder,
        before_saving: Callable[[], None],
        chooses_anew: bool = False,
        other_loss: bool = False,
    ) -> None:
        self.folder = folder
        self.before_saving = before_saving
        self.chooses_anew = chooses_anew
        self.other_loss = other_loss
        self._proven: set[Path] = set()
        self._newest: tuple[Path, Contents] | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Replaces a checkpoint.

        Raises:
            OSError: it cannot be written; the old one is still there.
            ValueError: the new file cannot be read; the old one is still there.
        """
        file = Path(path).resolve()
        self.before_saving()
        file.parent.mkdir(parents=True, exist_ok=True)
        # To memory first, because torch's writer hides the reason of disk errors.
        content = io.BytesIO()
        torch.save(checkpoint, content)
        contents = _contents(content)
        if not self._is_there(contents, file):
            with replacing(file) as stream:
                stream.write(content.getbuffer())
                stream.flush()
                map_checkpoint(Path(stream.name))  # can it be read?
                self._keep_before(file)
            self._newest = file, contents
        self._proven.add(file)

    def _is_there(self, contents: Contents, file: Path) -> bool:
        """Gives the newest checkpoint a second name, if it is the same and the disk allows that."""
        if self._newest is None or self._newest[1] != contents:
            return False
        try:
            if not (file.exists() and file.samefile(self._newest[0])):
                self._keep_before(file)
                _name(self._newest[0], file)
        except OSError:
            return False
        return True

    def _keep_before(self, file: Path) -> None:
        """Keeps the last checkpoint as the previous one, if `file` is to replace it."""
        if file == self.folder.last.resolve() and file in self._proven:
            _keep(self.folder.last, self.folder.previous)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint with the safe unpickler, whatever `weights_only` says.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or its weights are not finite.
        """
        file = Path(path).resolve()
        checkpoint: dict[str, Any] = read_checkpoint(file)
        check_weights(file, checkpoint)
        states: dict[str, dict[str, Any]] = checkpoint.get("callbacks", {})
        for name, state in [*states.items()]:
            if "best_model_path" in state:
                state.update(_moved(state, file.parent))
                state.update(_no_best() if self.chooses_anew else _without_damaged_best(state))
            elif self._is_stale(state):
                del states[name]
        self._proven.add(file)
        return checkpoint

    def _is_stale(self, state: Mapping[str, Any]) -> bool:
        of_stopping, of_gradients = "wait_count" in state, "pairs" in state
        return (of_stopping and self.chooses_anew) or (of_gradients and self.other_loss)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint."""
        Path(path).unlink(missing_ok=True)


def _contents(checkpoint: io.BytesIO) -> Contents:
    with zipfile.ZipFile(checkpoint) as archive:
        return [(part.filename, part.file_size, part.CRC) for part in archive.infolist()]


def _name(file: Path, name: Path) -> None:
    """Gives a file a second name (hard link), replacing any file of that name.

    Raises:
        OSError: the file system does not support hard links.
    """
    link = name.with_name(f".{name.name}.{os.getpid()}")
    link.unlink(missing_ok=True)
    link.hardlink_to(file)
    link.replace(name)


def _keep(last: Path, previous: Path) -> None:
    # A second name, so that `last` always exists. Without hard links it is missing for a moment,
    # and `resumable` finds the previous one.
    try:
        _name(last, previous)
    except OSError:
        with suppress(OSError):
            last.replace(previous)


def _without_damaged_best(state: Mapping[str, Any]) -> dict[str, Any]:
    # Otherwise its score would stay the best, and the run would be evaluated from a damaged file.
    if not state["best_model_path"]:
        return {}
    best = Path(state["best_model_path"])
    reason = broken(best) if best.is_file() else f"{best} is gone."
    if not reason:
        return {}
    console.warning("%s The best of the validations from here on takes its place.", reason)
    return _no_best()


def _no_best() -> dict[str, Any]:
    # A state of Lightning's `ModelCheckpoint` with which the next validation is the best.
    return {"best_model_path": "", "best_model_score": None, "best_k_models": {}}


def _moved(state: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    # If its folder was moved, ModelCheckpoint forgets the best score, and a worse checkpoint would
    # replace the best one.
    def here(path: str) -> str:
        # A path of Windows, which takes / as well: the run may come from there.
        return str(folder / PureWindowsPath(path).name) if path else path

    single = ("best_model_path", "kth_best_model_path", "last_model_path")
    return {
        "dirpath": str(folder),
        "best_k_models": {here(path): score for path, score in state["best_k_models"].items()},
        **{name: here(state[name]) for name in single},
    }
