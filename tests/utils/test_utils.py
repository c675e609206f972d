import errno
import itertools
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.swin_transformer import WindowAttention
from torch import nn

from tests.conftest import files_at_most
from utils.files import make_folder, owner, read_json, remove_abandoned, write_atomically
from utils.locks import claimed
from utils.memory import available_mb, peak_mb, resident_mb
from utils.optim import LARS_UNADAPTED_LR, adamw, lars, parameter_groups, sgd
from utils.run_folder import create
from utils.schedules import linear, warmup_constant, warmup_cosine, warmup_poly


def test_cosine_is_linear_up_then_ends_with_the_run():
    values = [warmup_cosine(step, total=100, warmup=10, final_lr_ratio=0.1) for step in range(100)]
    assert values[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(values) == values[9] == 1
    assert all(a > b for a, b in itertools.pairwise(values[9:]))
    assert values[54] == pytest.approx(0.55)  # half-way down
    assert values[-1] == pytest.approx(0.1)
    assert warmup_cosine(500, 100, 10, 0.1) == pytest.approx(0.1)  # and never climbs again


def test_constant():
    assert [warmup_constant(step, 9, 2) for step in range(4)] == [0.5, 1, 1, 1]
    assert warmup_constant(0, 9, 0) == 1


def test_poly_is_linear_up_then_a_power_of_what_remains():
    values = [warmup_poly(step, total=50, warmup=10, final_lr_ratio=0.1) for step in range(60)]
    assert values[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    remaining = [1 - (step - 9) / 40 for step in range(10, 50)]
    assert values[10:50] == pytest.approx([0.1 + 0.9 * left**0.9 for left in remaining])
    assert values[50:] == pytest.approx([0.1] * 10)


def test_linear_arrives_and_stays():
    assert [linear(step, 4, 1.0, 3.0) for step in range(6)] == [1, 1.5, 2, 2.5, 3, 3]
    assert linear(0, 0, 1.0, 3.0) == 3


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def test_norms_and_biases_do_not_decay():
    decayed, others = parameter_groups({network(): 1.0}, 1.0, 0.1)
    assert [p.ndim for p in decayed["params"]] == [4, 2]
    assert {p.ndim for p in others["params"]} == {1}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)


def test_a_table_of_biases_does_not_decay():
    attention = WindowAttention(dim=8, num_heads=2, window_size=2)
    decayed, others = parameter_groups({attention: 1.0}, 1.0, 0.1)
    names = {parameter: name for name, parameter in attention.named_parameters()}
    assert [names[p] for p in decayed["params"]] == ["qkv.weight", "proj.weight"]
    rest = {"relative_position_bias_table", "qkv.bias", "proj.bias"}
    assert {names[p] for p in others["params"]} == rest


def test_frozen_parameters_are_left_out():
    net = network()
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        parameter_groups({net: 1.0}, 1.0, 0.1)
    net[2].requires_grad_(True)  # type: ignore[index]
    assert sum(len(group["params"]) for group in parameter_groups({net: 1.0}, 1.0, 0.1)) == 2


def test_adamw_decays_matrices_only():
    net = network()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = adamw(parameter_groups({net: 1.0}, 0.1, 0.5))
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for old, new in zip(before, net.parameters(), strict=True):
        factor = 1 - 0.1 * 0.5 if old.ndim > 1 else 1.0
        torch.testing.assert_close(new.detach(), old * factor)


@pytest.mark.parametrize("decay", [0.0015, 0.0])
def test_lars_adapts_matrices_and_slows_the_others(decay):
    net = network()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = lars(parameter_groups({net: 1.0}, 0.2, decay), momentum=0.0)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for old, new in zip(before, net.parameters(), strict=True):
        if old.ndim <= 1:
            expected = old - 0.2 * LARS_UNADAPTED_LR
        else:
            gradient = torch.ones_like(old)
            trust = 0.001 * old.norm() / (gradient.norm() + decay * old.norm())
            expected = old - 0.2 * trust * (gradient + decay * old)
        torch.testing.assert_close(new.detach(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("make", [sgd, lars])
def test_momentum_is_that_of_the_settings(make):
    assert make(parameter_groups({network(): 1.0}, 0.1, 0), 0.8).defaults["momentum"] == 0.8


def test_a_file_that_cannot_be_written_is_named_and_stays_as_it_was(tmp_path):
    file = tmp_path / "summary.json"
    write_atomically(file, "old")
    with files_at_most(100), pytest.raises(OSError, match=r"summary\.json cannot be written"):
        write_atomically(file, "new" * 100)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_where_no_lock_can_be_written_is_said(tmp_path):
    (tmp_path / "run").touch()
    message = rf"{tmp_path}/run cannot be written \(.+\)\. Make it writable, or copy it"
    with pytest.raises(OSError, match=message), claimed(tmp_path / "run" / ".lock"):
        pass


def test_what_is_in_the_place_of_a_file_or_a_folder_is_said(tmp_path):
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(OSError, match=r"summary\.json cannot .*move that away") as caught:
        write_atomically(tmp_path / "summary.json", "new")
    assert caught.value.errno == errno.EISDIR
    (tmp_path / "exported").touch()
    for folder in (tmp_path / "exported", tmp_path / "exported" / "onnx"):
        with pytest.raises(OSError, match=f"The folder {folder} cannot be made .*move that away"):
            make_folder(folder)


@pytest.fixture
def left(tmp_path, monkeypatch):
    """Makes a folder that a process of some machine was filling, last some minutes ago."""

    def make(host: str, process: int, minutes: float) -> Path:
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(socket, "gethostname", lambda: host)
            elsewhere.setattr(os, "getpid", lambda: process)
            folder = tmp_path / f"abc.{minutes}{owner()}.part"
        (folder / "images").mkdir(parents=True)
        for path in (folder / "images", folder):
            os.utime(path, (0, time.time() - 60 * minutes))
        return folder

    return make


HERE, DEAD, ALIVE = socket.gethostname(), 999_999_999, 1


@pytest.mark.parametrize(
    ("host", "process", "minutes", "removed"),
    [
        (HERE, DEAD, 10, True),
        (HERE, DEAD, 1, False),  # a container of this name may be at it
        (HERE, ALIVE, 10, False),
        (f"gpu-{HERE}", DEAD, 10, False),
        (f"gpu.{HERE}", DEAD, 10, False),
        (f"{HERE}-2", DEAD, 10, False),
        (f"{HERE}-2", DEAD, 25 * 60, True),
    ],
)
def test_only_what_nobody_fills_any_more_is_removed(left, host, process, minutes, removed):
    folder = left(host, process, minutes)
    remove_abandoned([folder])
    assert folder.exists() != removed


def test_a_byte_deep_inside_is_one_more_day(left):
    folder = left(f"{HERE}-2", DEAD, 25 * 60)
    (folder / "images" / "1.png").touch()
    os.utime(folder / "images", (0, 0))
    remove_abandoned([folder])
    assert folder.exists()


def test_runs_are_never_overwritten(tmp_path):
    folder = create(str(tmp_path), "mine")
    with pytest.raises(ValueError, match=r"Choose another name\.$"):
        create(str(tmp_path), "mine")
    folder.hparams.touch()
    with pytest.raises(ValueError, match=f"continue it with --run.resume {folder.path}"):
        create(str(tmp_path), "mine")
    assert create(str(tmp_path), None).name != create(str(tmp_path), None).name


def test_hidden_files_of_a_system_keep_no_folder_from_being_taken_over(tmp_path):
    folder = create(str(tmp_path), "mine")
    for name in (".lock", ".DS_Store", ".nfs0001", "checkpoints/.DS_Store"):
        (folder.path / name).touch()
    assert create(str(tmp_path), "mine") == folder
    (folder.checkpoints / "best.ckpt").touch()
    with pytest.raises(ValueError, match="never overwritten"):
        create(str(tmp_path), "mine")


@pytest.mark.parametrize("status", ["failed", "finished"])
def test_results_without_a_step_and_a_checkpoint_are_kept(tmp_path, status):
    """A nearest-neighbour probe has no step, and checkpoints are removed to save space."""
    folder = create(str(tmp_path), "mine")
    (folder.path / ".lock").touch()
    folder.write_summary({"status": status, "steps": 0})
    if status == "failed":
        assert create(str(tmp_path), "mine") == folder
    else:
        with pytest.raises(ValueError, match="never overwritten"):
            create(str(tmp_path), "mine")


def test_deeply_nested_json_is_named(tmp_path, caplog):
    file = tmp_path / "summary.json"
    file.write_text("[" * 100_000)
    assert read_json(file) == {}
    assert "summary.json is damaged" in caplog.text
    file.write_text("")
    assert read_json(file) == {}
    assert "it is empty" in caplog.text


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.9])
def test_arrays_that_end_too_early_are_named(tmp_path, caplog, kept):
    folder = create(str(tmp_path), "mine")
    file = folder.figures / "views" / "newest.npz"
    file.parent.mkdir(parents=True)
    arrays = {"x": np.arange(100.0), "y": np.eye(3)}
    np.savez_compressed(file, **arrays)
    found = folder.newest_arrays("views")
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    assert folder.newest_arrays("views") is None
    assert "newest.npz is damaged" in caplog.text


def test_memory_is_measured():
    assert 50 < resident_mb() <= peak_mb(torch.device("cpu"))
    assert available_mb() > 50
    # In a process of its own: in one that has held more the block takes what was freed.
    lines = (
        "import torch; from utils.memory import peak_mb, reset_peak",
        "cpu = torch.device('cpu'); earlier = torch.ones(96 * 2**20 // 4); del earlier",
        "reset_peak(cpu); before = peak_mb(cpu)",
        "block = torch.ones(128 * 2**20 // 4); print(peak_mb(cpu) - before)",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert float(done.stdout) == pytest.approx(128, abs=30)


def test_a_shared_parameter_belongs_to_the_first_that_has_it():
    net = network()
    first = next(net.parameters())
    chosen = torch.nn.ParameterList([first])
    groups = parameter_groups({chosen: 10.0, net: 1.0}, 0.1, 0.5)
    assert [len(group["params"]) for group in groups if group["lr"] == 1.0] == [1]
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))
    assert parameter_groups({torch.nn.ParameterList(): 2.0, net: 1.0}, 0.1, 0.5)[0]["lr"] == 0.1
