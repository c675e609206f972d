"""Numbers on images that a network was trained on are marked, however it came to see them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from agents.images_seen import is_transductive
from callbacks.report import Report
from config.hparams import Hparams
from datamodules.image_folder import ImageFolder
from datamodules.linear_probe import LabelledDataModule
from datamodules.loading import Loading
from datamodules.segmentation import SegmentationDataModule
from datamodules.self_supervised import ViewsDataModule
from datamodules.shapes import Shapes
from datamodules.transforms.barlow_twins import BarlowTwinsViews
from datamodules.transforms.segmentation import Standard
from main import main
from tests.conftest import summary
from utils.run_folder import RunFolder


def leave_run(runs: Path, name: str, **settings: Any) -> None:
    (runs / name).mkdir(parents=True)
    written = yaml.safe_dump({"task": "barlow_twins", **settings})
    (runs / name / "hparams.yaml").write_text(written)


def going_on_from(runs: Path, weights: str) -> Hparams:
    hparams = Hparams()
    hparams.run.dir, hparams.backbone.weights = str(runs), weights
    return hparams


def test_a_run_is_judged_on_images_that_its_weights_have_seen(tmp_path, shapes_root):
    images = shapes_root / "VOCdevkit" / "VOC2012" / "JPEGImages"
    link = tmp_path / "link"
    link.symlink_to(images)
    shapes, gone = {"name": "shapes", "root": str(shapes_root)}, str(tmp_path / "gone")
    leave_run(tmp_path, "all", data={"name": "image_folder", "root": str(link)})
    leave_run(tmp_path, "theirs", data=shapes, backbone={"weights": "run:all"})
    leave_run(tmp_path, "training", data=shapes)
    leave_run(tmp_path, "moved", data={"name": "shapes", "root": gone})
    data = SegmentationDataModule(
        Shapes(str(shapes_root)), Standard(48), 32, Loading(batch_size=4), 0.25
    )
    data.setup("fit")
    expected = {"all": True, "theirs": True, "training": False, "moved": False}
    for name, seen in expected.items():
        assert is_transductive(data, going_on_from(tmp_path, f"run:{name}")) is seen, name
    assert not is_transductive(data, Hparams())
    assert not Path(gone).exists()  # looking draws nothing


def test_a_link_to_the_training_images_judges_nothing(tmp_path, image_folder):
    (tmp_path / "data").mkdir()
    for part in ("train", "val"):
        (tmp_path / "data" / part).symlink_to(image_folder)
    source = ImageFolder(str(tmp_path / "data"))
    data = ViewsDataModule(source, BarlowTwinsViews(32), 32, Loading(batch_size=4))
    data.setup("fit")
    assert is_transductive(data, Hparams())


@pytest.mark.parametrize(("fraction", "seen"), [(0.2, False), (0.5, True)])
def test_a_probe_sets_no_trained_images_apart(tmp_path, image_folder, fraction, seen):
    for name in "ab":
        for index in range(12):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / name / f"{index}.png").symlink_to(image_folder / "00.png")
    root = str(tmp_path / "data")
    leave_run(tmp_path, "pre", data={"name": "image_folder", "root": root, "val_fraction": 0.2})
    data = LabelledDataModule(ImageFolder(root, val_fraction=fraction), 8, Loading(2), 0.1)
    data.setup("fit")
    assert is_transductive(data, going_on_from(tmp_path, "run:pre")) is seen


def test_the_mark_is_in_the_summary(train, shapes_root, capsys):
    images = shapes_root / "VOCdevkit" / "VOC2012" / "JPEGImages"
    shorter = {"trainer__max_epochs": 1}
    train("pre", data__name="image_folder", data__root=images, **shorter)
    own = dict.fromkeys(("backbone__patch_size", "backbone__depth", "backbone__embed_dim"), ...)
    told = {"backbone__weights": "run:pre", "backbone__freeze": "true", **own}
    code, folder = train("judged", task="segmentation", **told, **shorter)
    assert code == 0
    assert summary(folder)["transductive"] is True
    assert "TRANSDUCTIVE" in capsys.readouterr().out
    # Wherever it is said it means the same: the run itself saw none of them.
    run, runs_dir = RunFolder(folder), str(folder.parent)
    Report(run).write()
    assert main(["--compare", "judged", "--run.dir", runs_dir]) == 0
    assert main(["--export", "judged", "--run.dir", runs_dir]) == 0
    page, card = folder / "report.html", run.exported.with_name("README.md")
    for said in (capsys.readouterr().out, page.read_text(), card.read_text()):
        assert "that of the weights, saw images that judge it" in said
