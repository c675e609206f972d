"""What Windows and macOS have otherwise than Linux, simulated here."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import ntpath
import os
import pkgutil
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from config.hparams import Hparams
from config.length import resolve_for_data
from config.resolve import resolve
from config.settings_tree import at_home, update
from config.types import FolderName
from datamodules.masked_images import SegmentationBatch
from main import main
from tests.conftest import PACKAGES, options, summary, tiny
from utils import device, memory
from utils.console import quiet_libraries
from utils.files import write_atomically
from utils.text import command_line

ROOT = Path(__file__).parents[1]
POSIX_ONLY = ("fcntl", "grp", "posix_ipc", "pty", "pwd", "resource", "termios")

_IMPORTS_ALL = """
import importlib, signal, sys

for name in {missing}:
    sys.modules[name] = None
for name in ("SIGKILL", "SIGALRM", "sigwaitinfo", "pthread_sigmask"):
    delattr(signal, name)
for name in {modules}:
    importlib.import_module(name)
from utils.memory import peak_mb
import torch, utils.memory, pathlib
utils.memory._STATUS = pathlib.Path("nowhere")
assert peak_mb(torch.device("cpu")) == 0
from datamodules.workers import WorkerKilledError, begin
begin(0)
assert "ended with code 3" in str(WorkerKilledError(3, 2))
"""


def modules() -> list[str]:
    return ["main"] + [
        found.name
        for package in PACKAGES
        for found in pkgutil.walk_packages([str(ROOT / package)], f"{package}.")
    ]


def test_every_module_is_imported_where_there_is_no_posix():
    assert len(modules()) > 100
    script = _IMPORTS_ALL.format(missing=POSIX_ONLY, modules=modules())
    code = f"import torch, pytorch_lightning, wandb, multiprocessing.util\n{script}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_is_said_of_triton_where_there_is_none():
    """As on Windows, where torch tells every command that imports Lightning."""
    command = ["--data.name", "image_folder", "--data.root", "nowhere"]
    code = f"import sys; sys.modules['triton'] = None; from main import main; main({command})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "error: There is no folder nowhere. Set --data.root.\n"


SLOW = [pytest.param(task, marks=pytest.mark.slow) for task in ("segmentation", "linear_probe")]


@pytest.mark.parametrize("task", ["barlow_twins", *SLOW])
def test_processes_that_load_images_can_be_spawned(tmp_path, shapes_root, monkeypatch, task):
    """As on Windows and macOS, where they begin with nothing but what is sent to them."""
    method = multiprocessing.get_start_method()
    settings = {"task": task, "run.dir": tmp_path, "data.root": shapes_root}
    multiprocessing.set_start_method("spawn", force=True)
    try:
        for workers in (0, 1):
            more = {"run.name": f"{workers}", "data.num_workers": workers, "trainer.max_epochs": 1}
            assert main(options(tiny(settings | more))) == 0
    finally:
        multiprocessing.set_start_method(method, force=True)
    alone, spawned = (summary(tmp_path / name) for name in ("0", "1"))
    assert alone["train/loss"] == spawned["train/loss"]


def test_a_job_of_several_tasks_is_told_what_to_ask_for(tmp_path, shapes_root, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_JOB_NAME", "train.sh")
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    assert main(options(tiny({"run.dir": tmp_path, "data.root": shapes_root}))) == 2
    told = capsys.readouterr().err
    assert "--ntasks-per-node=4" in told
    assert "--ntasks=1" in told


@pytest.mark.parametrize(
    "name", [*("a:b", "what?", "x.", "x ", 'say "x"', "a|b", "<script>"), *("con", "NUL.2", "com1")]
)
def test_names_that_windows_does_not_take_are_refused_there(monkeypatch, name):
    assert FolderName().problem(name) is None
    fine = ("run 7, seed-1", "console", "null", "com")
    with monkeypatch.context() as windows:  # pytest needs the true name to report a failure
        windows.setattr(os, "name", "nt")
        refused, *taken = (FolderName().problem(each) for each in (name, *fine))
    assert "Windows" in str(refused)
    assert taken == [None] * len(fine)


def test_commands_are_quoted_as_the_system_reads_them(monkeypatch):
    words = ("python", "main.py", "--data.root", r"D:\my photos", "--backbone.weights", r"run:a\b")
    assert shlex.split(command_line(*words)) == list(words)
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        told = command_line(*words)
    assert told == r'python main.py --data.root "D:\my photos" --backbone.weights run:a\b'


def test_home_is_written_as_on_windows(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", ntpath.expanduser)
    monkeypatch.setenv("USERPROFILE", r"C:\Users\me")
    assert at_home(r"~\photos") == r"C:\Users\me\photos"
    assert at_home("~/photos") == r"C:\Users\me/photos"


def test_setting_up_is_explained_as_it_is_done_on_windows(monkeypatch, capsys):
    def broken(argv: list[str]) -> None:
        raise ImportError("DLL load failed")

    monkeypatch.setattr("config.parsing.parse", broken)
    monkeypatch.setattr(sys, "platform", "win32")
    assert main([]) == 2
    told = capsys.readouterr().err
    assert r".venv\Scripts\python main.py" in told
    assert "make" not in told


def test_a_file_that_is_held_for_a_moment_is_replaced(monkeypatch, tmp_path):
    """As virus scanners on Windows hold what was just written."""
    file, replace, held = tmp_path / "last.ckpt", Path.replace, [True, True]
    file.write_text("old")

    def replaced(path: Path, target: Path) -> Path:
        if held and held.pop():
            raise PermissionError(errno.EACCES, "Access is denied")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replaced)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    write_atomically(file, "new")
    assert file.read_text() == "new"
    held[:] = [True] * 9
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        with pytest.raises(OSError, match="denied") as refused:
            write_atomically(file, "newer")
    assert "close it where it is open, as in Excel" in str(refused.value)
    assert [each.read_text() for each in tmp_path.iterdir()] == ["new"]


def test_processes_that_import_everything_are_few(monkeypatch):
    monkeypatch.setattr("config.length.usable_cores", lambda: 16)
    hparams = resolve(update(Hparams(), {"trainer": {"devices": 2}}, "x"))
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        chosen = [resolve_for_data(hparams, 999, gpu).data.num_workers for gpu in (True, False)]
    finally:
        multiprocessing.set_start_method(method, force=True)
    assert chosen == [4, 7]


def test_a_terminal_that_does_not_know_its_width_shows_what_others_do(train, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "0")
    assert train()[0] == 0
    shown = capsys.readouterr().out
    assert "Trained: barlow_twins" in shown
    assert "Next: " in shown


def test_a_library_that_cannot_write_its_own_log_is_not_heard(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(logging, "raiseExceptions", True)
    quiet_libraries()
    library = logging.Logger("library")
    library.addHandler(logging.FileHandler(tmp_path / "debug.log", encoding="ascii"))
    for name in ("crop", "grün"):  # as of a class, where the system's encoding has no ü
        library.warning(name)
    assert (tmp_path / "debug.log").read_text() == "crop\n"
    assert not capsys.readouterr().err


def test_apples_gpu_is_used_if_asked_for_and_never_else(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "nvidia_cards", list)
    for there in (True, False):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=there: there)
        device.check_accelerator("auto")
        assert device.best_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="finds no Apple GPU"):
        device.check_accelerator("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    device.check_accelerator("mps")
    assert device.best_device("mps") == torch.device("mps")
    assert device.device_name("mps") == "Apple GPU"
    assert device.resolve_precision("auto", "mps") == "32-true"


def test_copies_to_apples_gpu_are_awaited():
    class Devices(TorchFunctionMode):
        """Lets copies to devices that are not there stay here."""

        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is Tensor.to:
                waits.append(not kwargs["non_blocking"])
                return args[0]
            return func(*args, **(kwargs or {}))

    images, one = torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.tensor([0])
    batch = SegmentationBatch(images, images[:, 0], torch.tensor([[8, 8, 8, 8]]), one, ())
    waits: list[bool] = []
    with Devices():
        for kind in ("cuda", "mps"):
            batch.to(torch.device(kind))
            device.moved(images, torch.device(kind))
    assert waits == [False] * 3 + [True] * 3


def test_a_system_that_does_not_tell_its_memory(monkeypatch):
    monkeypatch.setattr(memory, "_MEMINFO", Path("nowhere"))
    assert memory.available_mb() == float("inf")


@pytest.mark.parametrize(
    ("stat", "expected"),
    [("anon 524288000\ninactive_file 419430400\nactive_file 0\n", 524), (None, 124)],
)
def test_files_that_were_read_do_not_use_up_a_container(monkeypatch, tmp_path, stat, expected):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemAvailable: {2**30} kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{900 * 2**20}\n")
    if stat:
        (tmp_path / "memory.stat").write_text(stat)
    assert memory.available_mb() == 2**20  # without a limit
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    assert memory.available_mb() == expected
