"""A run's folder: contains everything that it produces, and everything to repeat it."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.files import name_damaged, read_json, write_atomically
from utils.locks import claimed
from utils.text import command_line

_ADJECTIVES = (
    "amber brisk calm clear crisp early fresh gentle golden leafy misty quiet rapid soft sunny"
)
_NOUNS = "brook cloud dawn dew field forest gorge hill lake leaf meadow rain river sky valley"

# What a run writes before its first checkpoint, besides its settings.
_REMAINS = (
    *("metrics.csv", "metrics.damaged.csv", "summary.json", "report.html"),
    *("code.patch", "figures", "tensorboard"),
)

_TOLD = "TWINSIGHT_RUN_FOLDER"  # passes the new folder to processes that Lightning starts


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @classmethod
    def around(cls, checkpoint: Path) -> RunFolder:
        """Returns the folder of the run that a checkpoint lies in."""
        return cls(checkpoint.parent.parent)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    def called(self, runs_dir: str) -> str:
        """Returns how to refer to it with this --run.dir: its name, or its path if elsewhere."""
        inside = (Path(runs_dir) / self.name).resolve() == self.path.resolve()
        return self.name if inside else str(self.path)

    @property
    def checkpoints(self) -> Path:
        """best.ckpt, last.ckpt, previous.ckpt, backbone.pth."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The checkpoint a run resumes from."""
        return self.checkpoints / "last.ckpt"

    @property
    def previous(self) -> Path:
        """The checkpoint before the last, in case that is damaged."""
        return self.checkpoints / "previous.ckpt"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self.last.exists() or self.previous.exists()

    @property
    def best(self) -> Path:
        """The checkpoint with the best validation result."""
        return self.checkpoints / "best.ckpt"

    @property
    def backbone(self) -> Path:
        """The trained backbone in its architecture's public layout."""
        return self.checkpoints / "backbone.pth"

    @property
    def exported(self) -> Path:
        """The network for other programs, written by `--export`."""
        return self.checkpoints / "backbone.safetensors"

    @property
    def hparams(self) -> Path:
        """The settings, complete and resolved."""
        return self.path / "hparams.yaml"

    @property
    def figures(self) -> Path:
        """figures/<kind>/step-*.png."""
        return self.path / "figures"

    @property
    def metrics(self) -> Path:
        """Every scalar by step."""
        return self.path / "metrics.csv"

    @property
    def summary(self) -> Path:
        """The results of the run."""
        return self.path / "summary.json"

    @property
    def environment(self) -> Path:
        """Commit, packages, device."""
        return self.path / "environment.json"

    @property
    def report(self) -> Path:
        """The whole run on one page."""
        return self.path / "report.html"

    def read_summary(self) -> dict[str, Any]:
        """Returns summary.json; empty if it does not exist or is damaged."""
        return read_json(self.summary)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replaces summary.json."""
        write_atomically(self.summary, json.dumps(dict(summary), indent=2) + "\n")

    def read_environment(self) -> dict[str, Any]:
        """Returns environment.json; empty if it does not exist or is damaged."""
        return read_json(self.environment)

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Replaces environment.json."""
        write_atomically(self.environment, json.dumps(dict(environment), indent=2) + "\n")

    def check_places(self) -> None:
        """Checks that the places where a run will write are free, before it trains for days.

        Raises:
            ValueError: a folder is in the place of a file, or the other way round; names it.
        """
        files = [self.metrics, self.summary, self.environment, self.path / ".lock", self.hparams]
        files += [self.best, self.last, self.previous, self.backbone]
        folders = [self.checkpoints, self.figures]
        wrong = [file for file in files if file.is_dir()]
        wrong += [folder for folder in folders if folder.exists() and not folder.is_dir()]
        if wrong:
            kind, belongs = ("folder", "file") if wrong[0].is_dir() else ("file", "folder")
            raise ValueError(
                f"{wrong[0]} is a {kind}, and a {belongs} of the run belongs there: move it away."
            )

    @property
    def finished(self) -> bool:
        """Whether the run has finished."""
        return self.read_summary().get("status") == "finished"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes from training the run; the lock ends with the process.

        Raises:
            ValueError: another process holds it.
        """
        # A second is longer than `busy` of another process holds it.
        with claimed(self.path / ".lock", timeout=1) as mine:
            if not mine:
                raise ValueError(
                    f"{self.path} is being trained by another process. Wait for it, or stop it "
                    "first."
                )
            yield

    @property
    def busy(self) -> bool:
        """Whether a process is training the run."""
        if not self.path.is_dir():
            return False
        with claimed(self.path / ".lock") as free:
            return not free

    @property
    def abandoned(self) -> bool:
        """Whether it only has the files of a run that was killed before its first checkpoint.

        Or of one that failed before its first step, as with a setting that its network refuses.
        """
        began = (self.path / ".lock").exists() and self.checkpoints.is_dir()
        # A probe without a step may have finished, and its checkpoint have been removed since.
        ended = self.summary.exists() and (self.finished or self.read_summary().get("steps") != 0)
        if not began or ended:
            return False
        # Hidden files come from `replacing` and operating systems: .DS_Store, .nfs*.
        if not all(file.name.startswith(".") for file in self.checkpoints.iterdir()):
            return False
        known = {"checkpoints", "environment.json", "hparams.yaml", "wandb", *_REMAINS}
        return all(file.name in known or file.name[0] == "." for file in self.path.iterdir())

    def clear(self) -> None:
        """Removes the old files of a run that starts again."""
        for name in _REMAINS:
            place = self.path / name
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)

    def newest_arrays(self, kind: str) -> dict[str, NDArray[Any]] | None:
        """Returns the data of the last picture of a kind.

        Returns:
            None if there is none, or it is damaged (with a warning).
        """
        file = self.figures / kind / "newest.npz"
        if not file.exists():
            return None
        try:
            with np.load(file) as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            name_damaged(file, str(error))
            return None


def named_run(weights: str, runs_dir: str) -> RunFolder | None:
    """Returns the folder of `run:NAME`, or of `run:PATH`; None for anything else."""
    if not weights.startswith("run:"):
        return None
    name = weights.removeprefix("run:")
    inside = Path(runs_dir) / name
    return RunFolder(inside if inside.is_dir() else Path(name))


def create(runs_dir: str, name: str | None, experiment: str | None = None) -> RunFolder:
    """Makes the folder of a new run, or takes over that of a run without a checkpoint.

    Args:
        runs_dir: folder of all runs.
        name: of the run; None: that of the experiment, with a number from the second run on.
        experiment: name of the experiment, or of the run whose settings are used; None: the name
            is made of random words and the time.

    Raises:
        ValueError: a run of this name exists; it is never overwritten.
        OSError: the folder cannot be written.
    """
    path = Path(runs_dir) / (name or _free_name(Path(runs_dir), experiment))
    try:
        if not RunFolder(path).abandoned:
            path.mkdir(parents=True)
            (path / "checkpoints").mkdir()
    except FileExistsError as error:
        is_run = RunFolder(path).has_checkpoint or RunFolder(path).hparams.exists()
        resume = f", or continue it with --run.resume {command_line(str(path))}" if is_run else ""
        raise ValueError(
            f"--run.name {name}: {path} exists and is never overwritten. Choose another name"
            f"{resume}."
        ) from error
    except OSError as error:
        raise OSError(
            f"The run folder {path} cannot be written ({error.strerror}). Set --run.dir to a "
            "folder you may write to."
        ) from error
    os.environ[_TOLD] = str(path.resolve())
    return RunFolder(path)


def _free_name(runs: Path, experiment: str | None) -> str:
    if experiment is not None:
        file = Path(experiment)
        of_a_run = file.name == RunFolder(file.parent).hparams.name
        stem = file.absolute().parent.name if of_a_run else file.stem
        numbered = (stem if n == 1 else f"{stem}-{n}" for n in itertools.count(1))
        return next(name for name in numbered if not (runs / name).exists())
    # Not the seeded generator, because two runs with the same seed need different names.
    words = random.SystemRandom()
    generated = f"{words.choice(_ADJECTIVES.split())}-{words.choice(_NOUNS.split())}"
    return f"{generated}-{datetime.now():%m%d-%H%M%S}"


def folder_of_leader(runs_dir: str, name: str | None) -> RunFolder:
    """Returns the folder that the leading process made for a run of several processes.

    Raises:
        ValueError: this process does not know its name.
    """
    if name is not None:
        return RunFolder(Path(runs_dir) / name)
    if _TOLD not in os.environ:
        raise ValueError(
            "Several processes started from outside (torchrun, srun) need a common --run.name."
        )
    return RunFolder(Path(os.environ[_TOLD]))
