"""Whatever is given as a weight file: its content, or one sentence that names it and says why."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib
import os
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from utils.run_checkpoints import map_run_checkpoint, read_run_checkpoint
from utils.weight_files import download, read_checkpoint, read_weights, tensors_in

STATE = {"a.weight": torch.arange(600.0), "b.bias": torch.ones(3)}


def write(file: Path) -> None:
    if file.suffix == ".safetensors":
        save_file(STATE, file)
    else:
        torch.save(OrderedDict(STATE), file, _use_new_zipfile_serialization=file.suffix != ".old")


def sentence(file: Path) -> str:
    with pytest.raises(ValueError, match=str(file)) as caught:
        read_checkpoint(file)
    said = str(caught.value)
    assert "\n" not in said
    assert "weights_only" not in said
    assert "PyTorch 2.6" not in said
    return said


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.old"])
def test_a_file_that_ends_too_early_is_named_wherever_it_ends(tmp_path, name):
    file = tmp_path / name
    write(file)
    assert all(map(torch.equal, read_checkpoint(file).values(), STATE.values()))
    whole = file.read_bytes()
    for share in (0.0, 0.01, 0.1, 0.3, 0.5, 0.9, 0.99):
        file.write_bytes(whole[: int(share * len(whole))])
        said = sentence(file)
        if name != "w.old" and share > 0.01:
            assert "ends too early" in said
        assert ("it is empty" in said) is (share == 0 and name != "w.safetensors")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_files_of_another_kind_are_named(tmp_path, name):
    file = tmp_path / name
    for content in (b"not weights", bytes(range(256)) * 9):
        file.write_bytes(content)
        assert "cannot be read" in sentence(file)


def test_a_compiled_network_is_no_weight_file(tmp_path):
    file = tmp_path / "scripted.pth"
    with warnings.catch_warnings(action="ignore"):  # of its age
        torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(file)
    assert "cannot be read as weights: it is a program of TorchScript" in sentence(file)


def test_archives_of_others_are_named(tmp_path):
    np.savez(tmp_path / "arrays.npz", a=np.zeros(2))
    assert "NumPy arrays" in sentence(tmp_path / "arrays.npz")
    torch.save(STATE, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "packed.pth", "w") as archive:
        archive.write(tmp_path / "a.pth", "inner.pth")
    assert "an archive of inner.pth" in sentence(tmp_path / "packed.pth")
    zipfile.ZipFile(tmp_path / "empty.pth", "w").close()
    assert "it is an archive, not a state dict" in sentence(tmp_path / "empty.pth")
    (tmp_path / "a.pth.gz").write_bytes(gzip.compress((tmp_path / "a.pth").read_bytes()))
    assert "packed by gzip" in sentence(tmp_path / "a.pth.gz")


class Settings(dict[str, Any]):
    """As OmegaConf's, Lightning's and mmengine's: items and attributes."""


class Kind(Enum):
    LARGE = "large"

    @staticmethod
    def of_letter(letter: str) -> Kind:
        return Kind.LARGE


def test_tensors_are_read_without_the_classes_beside_them(tmp_path):
    settings = Settings(lr=np.float64(0.1), kind=Kind.LARGE)
    settings.where, settings.parent = Path("out"), settings
    beside = {
        "args": argparse.Namespace(output_dir=Path("out")),
        "optimizer": {"param_groups": [{"lr": np.float64(0.1), "history": np.zeros(3)}]},
        "hyper_parameters": settings,
        "counts": defaultdict(list, {"a": [1]}),
        "history": SimpleNamespace(items=3, values=[1]),
        "mean": Kind.of_letter,  # as the histories of mmengine name their methods
    }
    file = tmp_path / "full.pth"
    torch.save(beside | {"state_dict": Settings(STATE)}, file)
    found = read_weights(file)
    assert found.keys() == {f"state_dict.{key}" for key in STATE}
    for key, value in STATE.items():
        assert torch.equal(found[f"state_dict.{key}"], value)


class Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("function", [os.system, exec, subprocess.check_call, Path.touch])
def test_a_file_that_calls_what_settings_are_not_made_of_is_refused(tmp_path, function):
    file = tmp_path / "bad.pth"
    torch.save({**STATE, "args": Calls(function, "touch was-run")}, file)
    with pytest.raises(ValueError, match="is refused"):
        read_weights(file)


def test_nothing_that_a_file_names_is_run_or_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "theirs.py").write_text("def build(name):\n    open(name, 'w').close()\n")
    theirs: Any = importlib.import_module("theirs")
    torch.save({**STATE, "args": Calls(theirs.build, "was-run")}, "net.pth")
    del sys.modules["theirs"]
    assert read_weights(Path("net.pth")).keys() == STATE.keys()
    assert "theirs" not in sys.modules
    assert not Path("was-run").exists()


class Averages(NamedTuple):
    weights: dict[str, torch.Tensor]


@pytest.mark.parametrize("ema", [nn.Sequential(nn.Linear(2, 2)), Averages(STATE)])
def test_a_network_beside_weights_is_refused_rather_than_passed_over(tmp_path, ema):
    torch.save({**STATE, "ema": ema}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match="is refused"):
        read_weights(tmp_path / "net.pth")


@pytest.mark.parametrize("new", [True, False])
def test_what_would_run_code_is_refused_by_name(tmp_path, new):
    file = tmp_path / "network.pth"
    torch.save(nn.Linear(2, 2), file, _use_new_zipfile_serialization=new)
    said = sentence(file)
    assert "is refused" in said
    assert ("torch.nn.modules.linear.Linear" in said) == new
    torch.save({"args": argparse.Namespace(lr=1.0), **STATE}, file)
    assert read_checkpoint(file)["args"].lr == 1.0


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.ones(2, 2).to(torch.float8_e4m3fn), r"a\.w is torch\.strided, torch\.float8_e4m3fn"),
        (torch.eye(2).to_sparse(), r"a\.w is torch\.sparse_coo"),
        (torch.quantize_per_tensor(torch.eye(2), 0.1, 0, torch.qint8), r"a\.w is .*qint8"),
        (torch.empty(2, device="meta"), r"a\.w is .*without values"),
    ],
)
def test_tensors_that_few_operators_take_are_refused_by_name(tensor, said):
    with pytest.raises(ValueError, match=said):
        tensors_in({"a": {"w": tensor}}, "x.pth")


def test_a_container_that_contains_itself_is_refused():
    circle = dict(STATE)
    circle["self"] = circle
    with pytest.raises(ValueError, match="contains itself"):
        tensors_in(circle, "x.pth")


def test_weights_in_a_list_are_found():
    found = tensors_in([{"model": STATE}, ({"lr": 0.1}, 3)], "x.pth")
    assert [*found] == ["0.model.a.weight", "0.model.b.bias"]


def test_a_checkpoint_of_a_run_holds_nothing_but_tensors(tmp_path):
    parts = {"state_dict": {**STATE, "b": 5}, "hyper_parameters": {}, "global_step": 3}
    torch.save(parts, tmp_path / "last.ckpt")
    for read in (read_run_checkpoint, map_run_checkpoint):
        with pytest.raises(ValueError, match=r"last\.ckpt is no .* run: its b is no tensor"):
            read(tmp_path / "last.ckpt")


def test_a_checkpoint_of_a_run_is_told_from_other_files(tmp_path):
    file = tmp_path / "last.ckpt"
    whole = {"state_dict": STATE, "hyper_parameters": {"task": "dino"}, "global_step": 3}
    parts = [{key: value for key, value in whole.items() if key != name} for name in whole]
    for other in (STATE, [1, 2], torch.ones(2), *parts, whole | {"hyper_parameters": None}):
        torch.save(other, file)
        with pytest.raises(ValueError, match=r"last\.ckpt is no checkpoint of a run"):
            read_run_checkpoint(file)
    torch.save(whole, file)
    assert read_run_checkpoint(file)["global_step"] == 3
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="ends too early"):
        read_run_checkpoint(file)


@pytest.mark.parametrize("nonsense", [None, 3, "abc", [3], {"a": 3}, torch.ones(2)])
@pytest.mark.parametrize(
    "entry", ["callbacks", "classes", "loops", "lr_schedulers", "optimizer_states"]
)
def test_an_entry_of_a_run_that_is_nonsense_is_named(tmp_path, entry, nonsense):
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": STATE, "hyper_parameters": {}, "global_step": 3}, file)
    assert read_run_checkpoint(file)["global_step"] == 3  # an older version's, without it
    torch.save({**read_run_checkpoint(file), entry: nonsense}, file)
    for read in (read_run_checkpoint, map_run_checkpoint):
        with pytest.raises(ValueError, match=rf"last\.ckpt is damaged: its {entry} are not those"):
            read(file)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132\n", "Git LFS"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "page of the web"),
        (b'{"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}', "in several parts"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'", "NumPy"),
    ],
)
def test_what_a_download_gave_instead_of_weights_is_named(tmp_path, name, content, named):
    file = tmp_path / name
    file.write_bytes(content)
    assert named in sentence(file)


@pytest.mark.parametrize("name", ["w.pth", "w.SAFETENSORS", "w"])
def test_a_safetensors_file_is_known_by_its_content(tmp_path, name):
    save_file(STATE, tmp_path / name)
    assert all(map(torch.equal, read_checkpoint(tmp_path / name).values(), STATE.values()))


@pytest.fixture
def published(tmp_path, monkeypatch) -> Path:
    """A weight file that its address gives, and nothing in torch's cache yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    file = tmp_path / "vit.pth"
    write(file)
    return file


def test_a_download_is_kept(published):
    for _ in range(2):
        found = download(published.as_uri())
        assert all(map(torch.equal, found.values(), STATE.values()))
        published.unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"Could not download .*other\.pth .*Fetch it by hand"):
        download(published.with_name("other.pth").as_uri())


@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        (lambda content: content[: len(content) // 2], "ends too early"),
        (lambda content: b"garbage", "damaged"),
        (lambda content: b"<html>Please log in</html>", "page of the web"),
    ],
)
def test_a_damaged_download_is_named_with_the_remedy(published, damaged, said):
    download(published.as_uri())
    (kept,) = published.parent.glob("torch/**/vit.pth")
    kept.write_bytes(damaged(kept.read_bytes()))
    with pytest.raises(ValueError, match=rf"{kept}.*{said}.*Remove it") as found:
        download(published.as_uri())
    assert "Could not download" not in str(found.value)
    kept.unlink()
    assert download(published.as_uri()).keys() == STATE.keys()


def test_a_hash_in_the_name_of_a_download_is_checked(published):
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    right, wrong = (published.with_name(f"vit-{each[:8]}.pth") for each in (digest, "0" * 8))
    for file in (right, wrong):
        file.write_bytes(published.read_bytes())
    assert download(right.as_uri()).keys() == STATE.keys()
    with pytest.raises(ValueError, match=r"Could not download .*invalid hash"):
        download(wrong.as_uri())
    assert not list(published.parent.glob("torch/**/*-00000000.pth"))
