"""What `--predict` takes, and what it leaves: labels, overlays, confidence, shares of classes."""

import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from agents.commands.pictures import find_pictures
from agents.commands.predict import Labelled, Predictions, label
from agents.commands.trained import trained_agent
from agents.protocols import protocol_of_test
from config.parsing import parse
from datamodules.reading import Picture
from main import main
from tests.conftest import files_at_most
from utils.palette import palette
from utils.run_checkpoints import best_or_last
from utils.run_folder import RunFolder

RUN = Path("no/run")


class Clip:
    """Stands for OpenCV's reader: three frames of one colour, blue, green and red in this order."""

    def __init__(self, name):
        self.left = 0 if "broken" in name else 3

    def get(self, _):
        return self.left

    def read(self):
        self.left -= 1
        frame = np.zeros((30, 40, 3), np.uint8)
        frame[..., 0] = 10 * (self.left + 1)  # blue comes first
        return self.left >= 0, frame

    def release(self):
        pass


@pytest.fixture
def opencv(monkeypatch):
    module = SimpleNamespace(VideoCapture=Clip, CAP_PROP_FRAME_COUNT=7, __spec__="there")
    monkeypatch.setitem(sys.modules, "cv2", module)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "deep" / "er").mkdir(parents=True)
    for name in ("a.jpg", "deep/a.png", "deep/er/b.png"):
        Image.effect_noise((50, 34), 80).convert("RGB").save(folder / name)
    for name in ("clip.mp4", "broken.mp4", "notes.txt"):
        (folder / name).write_text("x")
    return folder


def test_all_that_is_known_of_an_image_is_written(train, photos, opencv, capsys):
    _, folder = train("run", task="segmentation", trainer__max_steps=1)
    runs = ["--run.dir", str(folder.parent)]
    assert main(["--predict", "run", "--images", str(photos), *runs]) == 0
    said = capsys.readouterr().out
    assert "6 images labelled" in said
    assert "1 file skipped (unreadable)" in said
    assert "broken.mp4 (no video that OpenCV can read)" in said
    out = folder / "predictions" / "photos"
    names = [
        "a.jpg",
        "deep/a.png",
        "deep/er/b.png",
        *(f"clip.mp4/frame-{i:06d}" for i in (1, 2, 3)),
    ]
    with (out / "class_shares.csv").open() as stream:
        rows = {row.pop("image"): row for row in csv.DictReader(stream)}
    assert sorted(rows) == sorted(names)
    hparams = parse(["--evaluate", "run", *runs]).hparams
    agent, hparams, _ = trained_agent(RunFolder(folder), hparams, best_or_last(RunFolder(folder)))
    for name in names:
        labels = np.array(Image.open(out / "labels" / f"{name}.png"))
        confidence = np.array(Image.open(out / "confidence" / f"{name}.png"))
        assert (out / "overlays" / f"{name}.jpg").exists()
        assert confidence.shape == labels.shape
        shares = [float(share) for share in rows[name].values()]
        assert list(rows[name]) == list(agent.classes)
        found = np.bincount(labels.ravel(), minlength=len(shares)) / labels.size
        np.testing.assert_allclose(shares, found, atol=1e-6)
    image = Image.open(photos / "deep" / "a.png").convert("RGB")
    seen = protocol_of_test(hparams).image(image)
    with torch.no_grad():
        (logits,) = agent.network.logits_at([seen], [(34, 50)])
    labelled = label(agent, protocol_of_test(hparams), image)
    expected = logits.double().softmax(0).max(0).values
    np.testing.assert_allclose(labelled.confidence, expected.numpy(), atol=1e-6)
    written = np.array(Image.open(out / "confidence" / "deep" / "a.png.png"))
    np.testing.assert_allclose(written / 255, expected.numpy(), atol=0.003)


def test_every_class_has_a_share_and_a_reduced_image_labels_of_its_whole_size(tmp_path):
    labels = np.array([[0, 0, 0, 1]], np.uint8)
    half = Picture(Image.new("RGB", (4, 1)), (8, 2), 1)
    classes = ("a", "b", "c", "d")
    predictions = Predictions(tmp_path, classes, palette(classes))
    predictions.add(Path("x.jpg"), half, Labelled(labels, np.ones((1, 4), np.float32)))
    assert predictions.shares == [("x.jpg", "0.750000", "0.250000", "0.000000", "0.000000")]
    written = np.array(Image.open(tmp_path / "labels" / "x.jpg.png"))
    np.testing.assert_array_equal(written, labels.repeat(2, 0).repeat(2, 1))
    assert Image.open(tmp_path / "confidence" / "x.jpg.png").size == half.size
    predictions.finish()
    lines = (tmp_path / "class_shares.csv").read_text().splitlines()
    assert lines == ["image,a,b,c,d", ",".join(predictions.shares[0])]


def test_labelling_some_again_keeps_the_shares_of_the_others(train, photos, capsys):
    _, folder = train("run", task="segmentation", trainer__max_steps=1)
    runs = ["--run.dir", str(folder.parent)]
    for name in ("b.jpg", "c.png"):
        Image.effect_noise((50, 34), 80).convert("RGB").save(photos / name)
    shares = folder / "predictions" / "photos" / "class_shares.csv"
    rows = []
    for pattern in ("*.jpg", "*.png", "b.*"):
        assert main(["--predict", "run", "--images", str(photos / pattern), *runs]) == 0
        rows.append(shares.read_text().splitlines())
    first, second, third = rows
    assert [row.partition(",")[0] for row in second] == ["image", "a.jpg", "b.jpg", "c.png"]
    assert first == second[:3]
    assert sorted(third) == sorted(second)


def test_what_a_run_has_drawn_is_not_labelled(train, tmp_path, capsys):
    _, folder = train("run", task="segmentation", trainer__max_steps=1)
    Image.new("RGB", (20, 20)).save(folder.parent / "photo.png")
    command = ["--predict", "run", "--images", str(folder.parent), "--run.dir", str(folder.parent)]
    for _ in range(2):
        assert main(command) == 0
        assert "1 image labelled" in capsys.readouterr().out


def test_images_of_another_place_go_to_a_folder_of_their_own(train, tmp_path, capsys):
    _, folder = train("run", task="segmentation", trainer__max_steps=1)
    runs = ["--run.dir", str(folder.parent)]
    for place in ("one/photos.v1", "two/photos.v1", "two/photos.v2"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(tmp_path / place / f"{place[:3]}.png")
    places = ["one/photos.v1", "two/photos.v1", "two/photos.v2", "one/photos.v1"]
    for place in places:
        assert main(["--predict", "run", "--images", str(tmp_path / place), *runs]) == 0
    out = folder / "predictions"
    held = {file.relative_to(out).as_posix() for file in out.glob("*/labels/*")}
    assert held == {
        "photos.v1/labels/one.png.png",
        "photos.v1-2/labels/two.png.png",
        "photos.v2/labels/two.png.png",
    }
    assert (out / "photos.v1-2" / "images.txt").read_text() == str(tmp_path / "two" / "photos.v1")


def test_a_name_too_long_for_its_labels_ends_nothing(train, photos, capsys):
    _, folder = train("run", task="segmentation", trainer__max_steps=1)
    words = ["--predict", "run", "--images", str(photos), "--run.dir", str(folder.parent)]
    long = f"{'n' * 250}.png"
    (photos / "a.jpg").rename(photos / long)
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "2 images labelled" in said
    assert f"{long} (its output would have too long a name)" in said
    shares = (folder / "predictions" / "photos" / "class_shares.csv").read_text()
    assert [row.split(",")[0] for row in shares.splitlines()[1:]] == ["deep/a.png", "deep/er/b.png"]
    with files_at_most(100):  # a full disk is another matter
        assert main(words) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_pages_that_are_not_labelled_are_said(train, tmp_path, recwarn):
    _, folder = train("run", task="segmentation", trainer__max_steps=1)
    page = Image.effect_noise((50, 34), 80)
    page.save(tmp_path / "scan.tif", save_all=True, append_images=[page])
    words = ["--images", str(tmp_path / "scan.tif"), "--run.dir", str(folder.parent)]
    assert main(["--predict", "run", *words]) == 0
    said = [str(warning.message) for warning in recwarn]
    assert any("in 1 of 1 file of the images" in each and "scan.tif" in each for each in said)


def test_a_photograph_too_large_for_the_memory_ends_nothing(train, photos, monkeypatch, capsys):
    _, folder = train("run", task="segmentation", trainer__max_steps=1)
    Image.new("RGB", (300, 200)).save(photos / "large.png")

    def with_little_memory(agent, protocol, image):
        if image.width > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return label(agent, protocol, image)

    monkeypatch.setattr("agents.commands.predict.label", with_little_memory)
    words = ["--predict", "run", "--images", str(photos), "--run.dir", str(folder.parent)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "3 images labelled" in said
    assert "large.png (does not fit into memory)" in said


def test_frames_are_in_rgb(photos, opencv):
    found = find_pictures([str(photos / "clip.mp4")], RUN)
    pixels = [picture.image.getpixel((0, 0)) for _, picture in found.pictures([])]
    assert found.expected() == 3
    assert pixels == [(0, 0, 30), (0, 0, 20), (0, 0, 10)]


@pytest.mark.parametrize(
    ("places", "files"),
    [
        (["."], ["a.jpg", "deep/a.png", "deep/er/b.png"]),
        (["a.jpg"], ["a.jpg"]),
        (["deep"], ["a.png", "er/b.png"]),
        (["*/*.png"], ["deep/a.png"]),
        (["**/*.png"], ["deep/a.png", "deep/er/b.png"]),
        (["deep/*"], ["a.png", "er/b.png"]),
        (["a.jpg", "deep/a.png", "deep"], ["a.jpg", "deep/a.png", "deep/er/b.png"]),
    ],
)
def test_folders_files_and_patterns(photos, monkeypatch, places, files):
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.chdir(photos)
    found = find_pictures(places, RUN)
    assert [name.as_posix() for name, _ in found.pictures([])] == files
    assert found.expected() == len(files)


def test_no_name_leads_out_of_the_folder_of_results(photos, monkeypatch):
    """`labels/../b.png` and `confidence/../b.png` were one file."""
    monkeypatch.chdir(photos / "deep" / "er")
    found = find_pictures([".", "../a.png", "../../*.jpg"], RUN)
    assert [name.as_posix() for name, _ in found.pictures([])] == [
        "deep/er/b.png",
        "deep/a.png",
        "a.jpg",
    ]


def test_what_lies_above_a_link_lies_above_what_it_leads_to(photos, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(photos / "deep" / "er")
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "c.png").symlink_to(photos / "deep" / "a.png")
    found = find_pictures(["link/../a.png", "../c.png"], RUN)
    assert [path.name for path in found.files] == ["a.png", "c.png"]


def test_a_name_with_brackets_is_a_name(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo [1].png")
    (name, _), *others = find_pictures([str(tmp_path / "photo [1].png")], RUN).pictures([])
    assert (name.name, others) == ("photo [1].png", [])


@pytest.mark.parametrize(
    ("place", "kind", "message"),
    [
        ("nothing", FileNotFoundError, "no such file or folder"),
        ("*.tiff", FileNotFoundError, "nothing matches"),
        ("clip.mp4", ValueError, "videos need pip install opencv-python-headless"),
    ],
)
def test_what_is_not_there_is_said(photos, monkeypatch, place, kind, message):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(kind, match=message):
        find_pictures([str(photos / place)], RUN)
