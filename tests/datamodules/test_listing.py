"""Folders as people have them, and lists as editors save them."""

import hashlib
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.cifar10 import CIFAR10
from datamodules.image_folder import ImageFolder
from datamodules.listing import (
    IMAGE_SUFFIXES,
    files_below,
    held_out,
    image_files,
    judging_place,
    read_list,
    set_apart,
)
from datamodules.mask_folder import MaskFolder
from datamodules.reading import read_rgb
from datamodules.shapes import generate
from datamodules.voc import VOC, voc_files
from main import main
from tests.conftest import summary


def put(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 24), (90, 20, 30)).save(file)
    return file


def names(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in image_files(folder)]


@pytest.mark.parametrize(
    ("source", "inside"),
    [(VOC, "JPEGImages"), (CIFAR10, "cifar-10-batches-py"), (MaskFolder, "images")],
)
def test_a_root_one_folder_too_high_or_too_low_is_named(tmp_path, source, inside):
    right = tmp_path / "mine" / "data"
    for name in (inside, "masks"):
        (right / name).mkdir(parents=True)
    for wrong in (right / inside, right.parent):
        with pytest.raises(FileNotFoundError, match=f"Did you mean --data.root {right}\\?"):
            source(str(wrong)).files("all" if source is VOC else "train")
    with pytest.raises(FileNotFoundError) as found:
        source(str(tmp_path / "elsewhere")).files("all" if source is VOC else "train")
    assert "Did you mean" not in str(found.value)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5])
def test_there_is_always_an_image_to_judge_by(fraction):
    for size in range(2, 20):
        files = [Path(f"images/{number}.png") for number in range(size)]
        most, apart = set_apart(files, Path("images"), fraction)
        assert apart
        assert sorted([*most, *apart]) == sorted(files)
        below = {file for file in files if judging_place(file, Path("images")) < fraction}
        assert below <= set(apart)
        assert len(apart) == max(1, len(below))


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("Train", "testing")])
def test_images_to_judge_by_are_not_taken_without_a_word(tmp_path, recwarn, train, val):
    for part in (train, val):
        put(tmp_path / "imagenette" / part / "a" / "x.png")
    assert len(ImageFolder(str(tmp_path / "imagenette")).files("train")) == 1
    assert not recwarn
    with pytest.warns(UserWarning, match=f"Did you mean --data.root {tmp_path}/imagenette"):
        ImageFolder(str(tmp_path)).files("train")


@pytest.mark.parametrize(
    "hidden",
    [
        ".ipynb_checkpoints/x.png",
        "a/.ipynb_checkpoints/x.png",
        "a/._x.png",
        "a/.x.png",
        "__MACOSX/a/x.png",
        ".git/x.png",
        "@eaDir/x.png",
        "$RECYCLE.BIN/x.png",
        "#recycle/x.png",
        "@Recycle/x.png",
        "#snapshot/x.png",
        "@tmp/x.png",
    ],
)
def test_hidden_and_system_entries_are_no_images_and_no_classes(tmp_path, hidden):
    for split in ("train", "val"):
        for name in ("a/1.png", "b/1.png", hidden):
            put(tmp_path / split / name)
    source = ImageFolder(str(tmp_path))
    assert names(tmp_path / "train") == ["a/1.png", "b/1.png"]
    assert source.labels("train") == (("a", "b"), [0, 1])


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES & Image.registered_extensions().keys()))
def test_an_image_of_every_suffix_is_read(tmp_path, suffix):
    shade = np.linspace(40, 200, 32, dtype=np.uint8)
    pixels = np.broadcast_to(shade[:, None, None], (32, 32, 3)).copy()
    if suffix == ".pbm":  # black and white
        pixels = np.where(pixels > 120, 255, 0).astype(np.uint8)
    Image.fromarray(pixels).convert("1" if suffix == ".pbm" else "L").save(tmp_path / f"1{suffix}")
    (file,) = image_files(tmp_path)
    assert np.abs(np.asarray(read_rgb(file)).astype(int) - pixels).max() <= 8


def test_a_class_without_a_known_image_is_said(tmp_path, recwarn):
    put(tmp_path / "a" / "1.png")
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "b" / "deep" / "1.nii").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    assert ImageFolder(str(tmp_path)).labels("all")[0] == ("a",)
    (warning,) = recwarn
    assert f"{tmp_path / 'b'} is left out" in str(warning.message)
    assert "as 1.nii" in str(warning.message)


def test_parts_that_are_taken_for_classes_are_said(tmp_path, recwarn):
    for name in ("train/cat/1.png", "train/dog/1.png", "validate/cat/1.png", "validate/dog/1.png"):
        put(tmp_path / name)
    source = ImageFolder(str(tmp_path))
    assert source.labels("all")[0] == ("train", "validate")
    (warning,) = recwarn
    said = str(warning.message)
    assert f"right below {tmp_path} are taken for the classes: train, validate. No image" in said
    assert "as train/cat/1.png" in said
    put(tmp_path / "train" / "1.png")  # as of a class with more folders in it
    assert ImageFolder(str(tmp_path)).labels("all")[0] == ("train", "validate")
    assert len(recwarn) == 1


@pytest.mark.parametrize("part", ["", "train"])
def test_masks_that_are_taken_for_images_are_said(tmp_path, recwarn, part):
    (tmp_path / part / "labels").mkdir(parents=True)
    (tmp_path / part / "labels" / "1.txt").write_text("a box")
    for name in ("JPEGImages/1.png", "JPEGImages/2.png"):
        put(tmp_path / part / name)
    assert len(ImageFolder(str(tmp_path)).files("all")) == 2
    assert not len(recwarn)
    put(tmp_path / part / "SegmentationClass" / "1.png")
    source = ImageFolder(str(tmp_path))
    assert [len(source.files(split)) for split in ("all", "all")] == [3, 3]
    (warning,) = recwarn
    assert f"{tmp_path / part / 'SegmentationClass'} has a usual name for masks" in str(
        warning.message
    )
    assert "set --data.root to a folder that holds the images alone" in str(warning.message)


def test_pictures_that_are_not_read_are_counted(tmp_path):
    put(tmp_path / "4.jpg")
    for name in ("1.HEIC", "2.heic", "3.dng", "notes.txt"):
        (tmp_path / name).write_text("x")
    with pytest.warns(
        UserWarning, match=r"^3 files below .* left out, as 1\.HEIC: .* Convert them"
    ):
        assert names(tmp_path) == ["4.jpg"]


def test_what_lies_where_no_image_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"^There is no image below {tmp_path} \(looked"):
        names(tmp_path)
    for name in ("2.heic", "1.heic"):
        (tmp_path / name).write_text("x")
    with pytest.raises(FileNotFoundError, match=r"below .*; 2 files, as 1\.heic \(looked for"):
        names(tmp_path)


def test_a_data_set_may_lie_in_a_hidden_folder(tmp_path):
    put(tmp_path / ".cache" / "data" / "a" / "1.png")
    assert names(tmp_path / ".cache" / "data") == ["a/1.png"]


def test_links_are_followed(tmp_path):
    put(tmp_path / "elsewhere" / "1.png")
    put(tmp_path / "data" / "a" / "1.png")
    for link in ("b", "c"):
        (tmp_path / "data" / link).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "a" / "2.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    assert names(tmp_path / "data") == ["a/1.png", "a/2.png", "b/1.png", "c/1.png"]
    assert ImageFolder(str(tmp_path / "data")).labels("all")[0] == ("a", "b", "c")


def test_links_in_a_circle_end(tmp_path):
    put(tmp_path / "a" / "1.png")
    put(tmp_path / "b" / "1.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")
    (tmp_path / "b" / "a").symlink_to(tmp_path / "a")
    assert names(tmp_path) == ["a/1.png", "b/1.png", "b/a/1.png"]


def test_a_link_to_nothing_is_said(tmp_path):
    put(tmp_path / "a" / "1.png")
    (tmp_path / "b").symlink_to(tmp_path / "gone")
    with pytest.warns(UserWarning, match=r"b is a broken link"):
        assert names(tmp_path) == ["a/1.png"]


def test_a_folder_that_may_not_be_read_is_an_error(tmp_path, monkeypatch):
    put(tmp_path / "a" / "1.png")
    scandir = os.scandir

    def refuse(place):  # chmod does not stop root
        if Path(place).name == "a":
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="a"):
        list(files_below(tmp_path))


# --- names --------------------------------------------------------------------------------------

LATIN1 = os.fsdecode(b"caf\xe9")


def test_names_that_are_not_utf_8(tmp_path, train, capsys):
    for split in ("train", "val"):
        for number in range(8):
            put(tmp_path / "data" / split / LATIN1 / f"{LATIN1}{number}.png")
            put(tmp_path / "data" / split / "b" / f"{number}.png")
    assert ImageFolder(str(tmp_path / "data")).labels("train")[0] == ("b", r"caf\xe9")
    held_out(LATIN1, 0.5)
    code, folder = train(
        "probe",
        task="linear_probe",
        data__name="image_folder",
        data__root=tmp_path / "data",
        data__batch_size=4,
        trainer__max_epochs=1,
    )
    assert code == 0
    assert summary(folder)["status"] == "finished"


def test_a_split_is_the_same_after_a_copy_through_macos():
    names = [f"café_{number:02d}.png" for number in range(40)]
    places = [judging_place(Path(name), Path()) for name in names]
    for form in ("NFC", "NFD"):
        written = [unicodedata.normalize(form, name) for name in names]
        assert [held_out(name, 0.5) for name in written] == [held_out(name, 0.5) for name in names]
        assert [judging_place(Path(name), Path()) for name in written] == places
    assert 0 < sum(held_out(name, 0.5) for name in names) < 40


def test_the_split_of_a_name_is_for_good():
    digest = hashlib.sha256(b"test/a/1.png").digest()
    assert judging_place(Path("a/1.png"), Path()) == int.from_bytes(digest[:4]) / 2**32


def test_broken_images_with_such_names_are_named(tmp_path, train, capsys):
    _, folder = train("first", task="segmentation", trainer__max_steps=1)
    put(tmp_path / LATIN1 / "a.png")
    (tmp_path / LATIN1 / f"{LATIN1}.png").write_text("no image")
    (tmp_path / LATIN1 / f"{LATIN1}.txt").write_text("no image")
    (tmp_path / LATIN1 / ".hidden").write_text("no image")
    runs = ["--run.dir", str(folder.parent)]
    assert main(["--predict", "first", "--images", str(tmp_path / LATIN1), *runs]) == 0
    said = capsys.readouterr().out
    assert "1 image labelled" in said
    assert "1 file skipped (unreadable)" in said
    assert "1 file skipped (no images)" in said
    assert said.count(r"caf\xe9.png") == 1
    assert said.encode()


# --- lists --------------------------------------------------------------------------------------

WORDS = ["2007_000001", "größe", "c"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", " \n\n"])
@pytest.mark.parametrize("last", ["", "\n"])
def test_a_list_is_read_however_it_was_saved(tmp_path, encoding, end, last):
    file = tmp_path / "train.txt"
    file.write_bytes((end.join(WORDS) + last).encode(encoding))
    assert read_list(file) == WORDS


def test_a_list_need_not_be_utf_8(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"caf\xe9\n")
    assert read_list(tmp_path / "train.txt") == [LATIN1]


@pytest.mark.parametrize("content", [b"a\nb\0c\n", "a\nb\n".encode("utf-16-le")])
def test_a_list_with_nul_bytes_is_none(tmp_path, content):
    (tmp_path / "train.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"train\.txt is no list .* line \d holds a NUL byte"):
        read_list(tmp_path / "train.txt")


def test_an_image_that_a_list_repeats_counts_once(tmp_path):
    folder = generate(tmp_path, 4, 3)
    listing = folder / "ImageSets" / "Segmentation" / "val.txt"
    once = voc_files(folder, "val")
    first = once[0].stem
    listing.write_text(f"{listing.read_text()}{first}\n/JPEGImages/{first}.jpg /x/{first}.png\n")
    with pytest.warns(UserWarning, match=r"val\.txt repeats 2 of its names; each counts once"):
        assert voc_files(folder, "val") == once
