"""Runs that are killed at any moment, or lose the room to write, end as if nothing had happened."""

import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from main import main
from tests.agents.test_saving import rows_of
from tests.conftest import assert_same, options, summary, tiny, weights
from utils.files import is_temporary

pytestmark = pytest.mark.slow

# One that has imported everything and forks: a run then starts at once.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["main", "agents.trainer"])


def _run(words: list[str], temporary: str | None, log: Path) -> None:
    if temporary is not None:
        os.environ["TMPDIR"] = temporary
    with log.open("a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        sys.exit(main(words))


PRETRAINING = {"callbacks.views.enabled": "true", "callbacks.online_probe.enabled": "true"}
TASKS: dict[str, dict[str, str]] = {
    "barlow_twins": PRETRAINING,
    "dino": PRETRAINING,
    "segmentation": {"callbacks.segmentation_predictions.enabled": "true"},
    "linear_probe": {},
}


class Runs:
    """Starts runs of the same settings in processes of their own."""

    def __init__(self, place: Path, data: Path, log: Path, task: str = "barlow_twins") -> None:
        self.place, self.log = place, log
        self.settings = tiny(
            {
                "task": task,
                "run.dir": place,
                "data.root": data,
                "trainer.max_epochs": 6,
                "callbacks.report.enabled": "true",
                **TASKS[task],
            }
        )

    def start(self, name: str, temporary: str | None = None) -> BaseProcess:
        """Starts a run, or goes on with it, as a script would."""
        if (self.place / name / "hparams.yaml").exists():
            words = ["--run.resume", name, "--run.dir", str(self.place)]
        else:
            words = options({**self.settings, "run.name": name})
        process = SERVER.Process(target=_run, args=(words, temporary, self.log))
        process.start()
        return process

    def finish(self, name: str) -> tuple[Path, float]:
        began = time.monotonic()
        process = self.start(name)
        process.join()
        assert process.exitcode == 0, self.log.read_text()
        return self.place / name, time.monotonic() - began


@pytest.fixture(params=TASKS)
def runs(tmp_path: Path, shapes_root: Path, request: pytest.FixtureRequest) -> Runs:
    return Runs(tmp_path / "runs", shapes_root, tmp_path / "log.txt", request.param)


def assert_same_end(folder: Path, whole: Path) -> None:
    kept = {file.name for file in (whole / "checkpoints").glob("*.ckpt")}
    assert "last.ckpt" in kept
    for name in kept:
        assert_same(weights(folder, name), weights(whole, name))
    assert rows_of(folder) == rows_of(whole)
    assert summary(folder)["status"] == "finished"
    assert not [file for file in folder.rglob(".*") if is_temporary(file)]


def kill_after(process: BaseProcess, seconds: float) -> None:
    process.join(seconds)
    process.kill()
    process.join()


def kill_while_saving(process: BaseProcess, folder: Path, saves: int) -> None:
    """Kills while the nth file of a checkpoint is being written."""
    seen: set[int] = set()
    while process.is_alive() and len(seen) < saves:
        for file in (folder / "checkpoints").glob(".*.ckpt.*"):
            with suppress(FileNotFoundError):  # whole by now
                seen.add(file.stat().st_ino)
    process.kill()
    process.join()


def test_killed_at_random_moments(runs):
    """Twenty moments; the temporary files of every second run lie on another file system."""
    whole, seconds = runs.finish("whole")
    dice = random.Random(0)
    for number in range(4):
        name = f"killed-{number}"
        for _ in range(5):
            process = runs.start(name, "/dev/shm" if number % 2 else None)
            kill_after(process, dice.uniform(0, seconds))
        folder, _ = runs.finish(name)
        assert_same_end(folder, whole)


@pytest.mark.parametrize("temporary", [None, "/dev/shm"])
def test_killed_while_saving(runs, temporary):
    whole, _ = runs.finish("whole")
    name = "killed"
    for saves in (1, 2, 3, 2, 1, 4):
        kill_while_saving(runs.start(name, temporary), runs.place / name, saves)
    folder, _ = runs.finish(name)
    assert_same_end(folder, whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a disk of so many bytes."""
    place = tmp_path / "disk"
    place.mkdir()

    def make(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount a disk")
        return place

    yield make
    subprocess.run(["umount", str(place)], capture_output=True)


@pytest.mark.parametrize("room", [0.05, *(n / 10 for n in range(1, 10))])
def test_a_full_disk_costs_nothing_that_was_saved(tmp_path, shapes_root, small_disk, room):
    whole, _ = Runs(tmp_path / "runs", shapes_root, tmp_path / "log.txt").finish("whole")
    needed = sum(file.stat().st_size for file in whole.rglob("*") if file.is_file())
    disk = small_disk(3 * needed)
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(int((3 - room) * needed)))
    runs = Runs(disk / "runs", shapes_root, tmp_path / "log.txt")
    process = runs.start("full")
    process.join()
    assert process.exitcode in (1, 2)
    said = " ".join(runs.log.read_text().replace("│", "").split())  # out of its frame
    assert "No space left on device: free space there" in said
    assert "Traceback" not in said
    ballast.unlink()
    folder, _ = runs.finish("full")
    assert_same_end(folder, whole)
