"""Every mask is looked at before training; what is wrong is named, what is there is said."""

from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from datamodules.listing import held_out
from datamodules.masks import check as mask_check
from datamodules.masks.check import Census, check_masks, warn_of_unseen
from datamodules.shapes import Shapes, generate
from datamodules.voc import VOC, voc_pairs
from utils.console import quiet_libraries
from utils.palette import VOID


@pytest.fixture(autouse=True)
def _console():
    quiet_libraries()


def check(root: Path, split: str = "train", judged: bool = False) -> Census:
    source = Shapes(str(root))
    pairs, cache = source.pairs(split), root / "cache"
    images = [image for image, _ in pairs] if judged else []
    return check_masks(source, pairs, split, judged=images, cache=cache, threads=2)


def test_the_shares_are_those_of_all_pixels(shapes_root, tmp_path, capsys):
    source = Shapes(str(shapes_root))
    pairs = source.pairs("train")
    drawn = np.concatenate([np.asarray(Image.open(mask)).ravel() for _, mask in pairs])
    expected = np.bincount(drawn, minlength=VOID + 1)
    census = check_masks(source, pairs, "images", judged=(), cache=tmp_path)
    assert census.pixels == (*expected[: len(source.classes)], expected[VOID])
    share = 100 * expected[0] / expected[: len(source.classes)].sum()
    assert f"masks: 24 of 24 images: background {share:.2g} %" in capsys.readouterr().err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return generate(tmp_path, 6, 3)


def test_void_is_a_share_of_all_pixels(folder, tmp_path, capsys):
    for _, mask in voc_pairs(folder, "train"):
        labels = np.full_like(np.array(Image.open(mask)), VOID)
        half = len(labels) // 2
        labels[:half], labels[: half // 2] = 0, 1
        Image.fromarray(labels).save(mask)
    check(tmp_path)
    assert "void 50 % of all pixels." in capsys.readouterr().err


def break_labels(_: Path, mask: Path) -> None:
    labels = np.array(Image.open(mask))
    labels[3, 4] = 151
    Image.fromarray(labels).save(mask)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_labels, r"{mask} has labels \[151\]"),
        (lambda _, mask: Image.new("L", (7, 8)).save(mask), r"{mask} is 7 x 8 px"),
        (lambda _, mask: mask.write_text("x"), r"{mask} \(not a picture .*\) cannot be read"),
        (lambda image, _: image.write_text("x"), r"{image} \(not a picture .*\) cannot be read"),
    ],
)
def test_what_cannot_be_used_is_named(folder, tmp_path, damage, message):
    check(tmp_path, judged=True)  # what was found to be good is not believed for ever
    image, mask = voc_pairs(folder, "train")[2]
    damage(image, mask)
    words = message.format(image=image.name, mask=mask.name)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"^1 of 6 masks or images .*{words}"):
            check(tmp_path, judged=True)


def test_training_goes_on_without_an_unreadable_image(folder, tmp_path):
    whole = check(tmp_path)
    voc_pairs(folder, "train")[2][0].write_text("no image")
    assert sum(check(tmp_path).pixels) < sum(whole.pixels)
    with pytest.raises(ValueError, match=r"^1 of 6 masks or images"):  # though it was looked at
        check(tmp_path, judged=True)


def test_training_images_of_which_none_can_be_read_are_named(folder, tmp_path):
    for image, _ in voc_pairs(folder, "train"):
        image.write_text("version https://git-lfs.github.com/spec/v1")
    first = voc_pairs(folder, "train")[0][0]
    with pytest.raises(ValueError, match=rf"^None of 6 images can be read .*first: {first}"):
        check(tmp_path)


def test_masks_are_looked_at_once(folder, tmp_path, monkeypatch):
    first = check(tmp_path)
    monkeypatch.setattr(mask_check, "read_pair", None)  # cannot be called
    assert check(tmp_path) == first
    (known,) = (tmp_path / "cache").iterdir()
    known.write_text("{")  # killed while it was written
    with pytest.raises(TypeError):
        check(tmp_path)


def test_of_many_masks_some_are_looked_at(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mask_check, "MAX_MASKS", 2)
    check(tmp_path)
    assert "masks: 2 of 6 train: " in capsys.readouterr().err


def test_masks_of_the_stored_orientation_are_said(folder, tmp_path, capsys):
    pairs = voc_pairs(folder, "train")
    for (image, mask), orientation, size in zip(pairs, (6, 3, 6), (60, 60, 40), strict=False):
        tags = Image.Exif()
        tags[ExifTags.Base.Orientation] = orientation
        Image.new("RGB", (size, 40)).save(image, exif=tags)
        Image.new("L", (size, 40)).save(mask)
    for _ in range(2):
        census = check(tmp_path)
        said = capsys.readouterr().err
        named = [pairs[0][0]], [pairs[1][0], pairs[2][0]]
        for fit, files in zip(("STORED", "EITHER"), named, strict=True):
            assert census.fits[fit] == [str(file) for file in files]
            images = "image" if len(files) == 1 else "images"
            assert f"warning: of {len(files)} {images} with an EXIF orientation" in said
            assert f"First: {files[0]}" in said


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_bad_mask_ends_a_run_before_it_starts(train, tmp_path, capsys, split):
    folder = generate(tmp_path / "data", 16, 4)
    settings = {"data__name": "voc", "data__root": tmp_path / "data", "trainer__max_steps": 1}
    _, mask = voc_pairs(folder, split)[3]
    Image.new("L", (7, 8)).save(mask)
    code, run = train("bad", task="segmentation", **settings)
    assert code == 2
    assert f"{mask} is 7 x 8 px" in capsys.readouterr().err
    assert not run.exists()


def test_a_bad_image_that_is_held_out_ends_a_run_before_it_starts(train, tmp_path, capsys):
    """It would end it in its first validation: training alone can do without an image."""
    generate(tmp_path / "data", 16, 4)
    settings = {"data__name": "voc", "data__root": tmp_path / "data", "data__val_fraction": 0.3}
    pairs = voc_pairs(VOC(str(tmp_path / "data")).folder, "train")
    bad = next(image for image, _ in pairs if held_out(image.stem, 0.3))
    bad.write_bytes(bad.read_bytes()[:100])
    code, run = train("bad", task="segmentation", trainer__max_epochs=1, **settings)
    assert code == 2
    error = capsys.readouterr().err
    assert "1 of 16 masks or images cannot be used (training images)" in error
    assert bad.name in error
    assert not run.exists()


def test_classes_that_no_training_mask_shows_are_named(capsys):
    train, test = Census((5, 0, 0, 0, 9), {}), Census((3, 4, 0, 1, 0), {})
    warn_of_unseen(("sky", "dog", "cat", "hat"), test, train, "test images")
    said = capsys.readouterr().err
    assert "2 classes of the test images in none of the training masks" in said
    assert "missed. dog, hat." in said
    warn_of_unseen(("sky", "dog", "cat", "hat"), train, test, "training images")
    assert capsys.readouterr().err == ""


def test_a_run_is_told_of_classes_that_it_cannot_learn(train, tmp_path, capsys):
    root = generate(tmp_path / "data", 16, 4)
    source = Shapes(str(tmp_path / "data"))
    for _, mask in source.pairs("train"):
        labels = np.array(Image.open(mask))
        Image.fromarray(np.where(labels == 3, 0, labels).astype(np.uint8)).save(mask)
    assert root.is_dir()
    settings = {"task": "segmentation", "data__root": tmp_path / "data"}
    assert train("run", trainer__max_epochs=1, **settings)[0] == 0
    assert f"it counts as missed. {source.classes[3]}." in capsys.readouterr().err
