"""Checkpoints are found out when a byte of them changed, and know where they are."""

import random

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from config.lookup import read_settings
from utils.checkpoint_io import RunCheckpoints
from utils.run_checkpoints import resumable
from utils.run_folder import RunFolder
from utils.weight_files import read_checkpoint


def state(seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"layer.{i}": torch.randn(40, 7, generator=generator) for i in range(5)}
    return {
        "global_step": seed,
        "state_dict": tensors,
        "hyper_parameters": {"task": "dino"},
        "callbacks": {},
    }


def same(one: dict, other: dict) -> bool:
    pairs = zip(one["state_dict"].items(), other["state_dict"].items(), strict=True)
    equal = all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    return equal and one["global_step"] == other["global_step"]


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    return run


def test_a_changed_byte_is_found_or_changes_nothing(folder):
    RunCheckpoints(folder, lambda: None).save_checkpoint(state(3), folder.last)
    content, dice, found = folder.last.read_bytes(), random.Random(0), []
    for position in [*dice.sample(range(len(content)), 300), *range(-60, 0)]:
        changed = bytearray(content)
        changed[position] ^= 1 << dice.randrange(8)
        folder.last.write_bytes(changed)
        try:
            assert same(read_checkpoint(folder.last), state(3)), position
        except ValueError as error:
            found.append(str(error))
    assert len(found) > 150
    assert all("last.ckpt" in message for message in found)
    for length in dice.sample(range(len(content)), 50):
        folder.last.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"last\.ckpt"):
            read_checkpoint(folder.last)


def test_the_one_before_is_kept_if_it_was_sound(folder):
    written, saved = RunCheckpoints(folder, lambda: None), []
    for step in (1, 2, 3):
        written.save_checkpoint(state(step), folder.last)
        saved.append(read_checkpoint(resumable(folder)))
    assert same(read_checkpoint(folder.previous), state(2))
    assert [each["global_step"] for each in saved] == [1, 2, 3]
    folder.last.write_bytes(b"")
    assert resumable(folder) == folder.previous
    again = RunCheckpoints(folder, lambda: None)
    again.load_checkpoint(folder.previous)
    again.save_checkpoint(state(4), folder.last)
    assert same(read_checkpoint(folder.previous), state(2))
    assert same(read_checkpoint(folder.last), state(4))
    folder.last.unlink()
    assert resumable(folder) == folder.previous
    folder.previous.unlink()
    assert resumable(folder) is None


NO_CHECKPOINTS = {
    "no settings": lambda: {key: v for key, v in state(2).items() if key != "hyper_parameters"},
    "null as settings": lambda: state(2) | {"hyper_parameters": None},
    "a list as settings": lambda: state(2) | {"hyper_parameters": [1]},
    "a state dict": lambda: state(2)["state_dict"],
    "a list": lambda: [1, 2],
    "a folder": None,
}


@pytest.mark.parametrize("content", NO_CHECKPOINTS.values(), ids=NO_CHECKPOINTS)
def test_what_is_no_checkpoint_of_a_run_is_named_and_the_one_before_it_used(
    folder, content, caplog
):
    folder.checkpoints.mkdir()
    if content is None:
        folder.last.mkdir()
    else:
        torch.save(content(), folder.last)
    for read in (resumable, lambda folder: read_settings(folder.path)):
        with pytest.raises(ValueError, match=r"last\.ckpt is no .* start anew under another"):
            read(folder)
    torch.save(state(1), folder.previous)
    assert resumable(folder) == folder.previous
    assert "Going on from the one before it" in caplog.text
    assert read_settings(folder.path)["task"] == "dino"


def test_what_cannot_be_read_replaces_nothing(folder):
    files = RunCheckpoints(folder, lambda: None)
    files.save_checkpoint(state(1), folder.last)
    with pytest.raises(ValueError, match="more than tensors"):
        files.save_checkpoint(state(2) | {"extra": folder}, folder.last)
    assert same(read_checkpoint(folder.last), state(1))
    assert [file.name for file in folder.checkpoints.iterdir()] == ["last.ckpt"]


def test_weights_that_are_no_numbers_are_not_loaded(folder):
    files = RunCheckpoints(folder, lambda: None)
    for step in (1, 2, 3):
        written = state(step)
        if step > 1:
            written["state_dict"][f"layer.{step}"][5, 5] = torch.nan
        files.save_checkpoint(written, folder.best if step == 1 else folder.last)
    last = r"last\.ckpt is not loaded: 1 of 5 .* \(first layer\.3\).* \S+best\.ckpt has none"
    with pytest.raises(ValueError, match=last):
        files.load_checkpoint(folder.last)
    with pytest.raises(ValueError, match=r"previous\.ckpt is not loaded.* \(first layer\.2\)"):
        files.load_checkpoint(folder.previous)
    assert same(files.load_checkpoint(folder.best), state(1))


@pytest.mark.parametrize("written_on", ["here", "Windows"])
def test_the_best_score_moves_with_its_folder(folder, written_on):
    def keeper(run: RunFolder) -> ModelCheckpoint:
        made = ModelCheckpoint(dirpath=run.checkpoints, filename="best", monitor="val/loss")
        made.dirpath = str(run.checkpoints.resolve())
        return made

    best = keeper(folder)
    place = (
        r"C:\runs\run\checkpoints\best.ckpt" if written_on == "Windows" else folder.best.resolve()
    )
    best.best_model_path = best.kth_best_model_path = str(place)
    best.best_k_models = {best.best_model_path: torch.tensor(0.5)}
    best.best_model_score = best.kth_value = torch.tensor(0.5)
    files = RunCheckpoints(folder, lambda: None)
    files.save_checkpoint(state(1), folder.best)
    files.save_checkpoint(state(1) | {"callbacks": {"best": best.state_dict()}}, folder.last)
    moved = RunFolder(folder.path.rename(folder.path.with_name("moved")))
    loaded = RunCheckpoints(moved, lambda: None).load_checkpoint(moved.last)
    again = keeper(moved)
    again.load_state_dict(loaded["callbacks"]["best"])
    assert again.best_model_path == str(moved.best.resolve())
    assert again.best_k_models == {again.best_model_path: 0.5}
    assert again.kth_value == 0.5


def test_the_same_checkpoint_is_one_file_with_two_names(folder):
    files = RunCheckpoints(folder, lambda: None)
    for step, best in ((1, True), (2, False), (3, True)):
        if best:
            files.save_checkpoint(state(step), folder.best)
        files.save_checkpoint(state(step), folder.last)
        assert folder.best.samefile(folder.last) == best
        assert same(read_checkpoint(folder.last), state(step))
        assert same(read_checkpoint(folder.best), state(step if best else 1))
    assert same(read_checkpoint(folder.previous), state(2))
    files.save_checkpoint(state(3), folder.last)  # as when it is interrupted there
    names = {file.name for file in folder.checkpoints.iterdir()}
    assert names == {"best.ckpt", "last.ckpt", "previous.ckpt"}


@pytest.mark.parametrize("there", [True, False])
def test_where_files_have_one_name_only_both_are_written(folder, monkeypatch, there):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    files = RunCheckpoints(folder, lambda: None)
    files.save_checkpoint(state(1), folder.best)
    if there:
        monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    else:
        folder.best.unlink()
    for step in (1, 2):
        files.save_checkpoint(state(step), folder.last)
        assert same(read_checkpoint(folder.last), state(step))
    assert same(read_checkpoint(folder.previous), state(1))
    assert folder.best.exists() == there
