"""Attention is measured in runs: on training images while training, on test images at the test."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from callbacks.attention_quality import draw, measure
from callbacks.image_counts import ImageCounts
from datamodules.image_folder import ImageFolder
from datamodules.loading import Loading
from datamodules.segmentation import SegmentationDataModule
from datamodules.shapes import Shapes, generate
from datamodules.transforms.segmentation import Standard
from main import main
from models.backbones.swin import build as build_swin
from models.backbones.vit import vit_tiny
from models.measures.attention_quality import Quality
from tests.conftest import assert_same, summary, weights
from utils import figures

ON = {"callbacks__attention_quality__enabled": "true"}


def data(root: Path, val_fraction: float = 0.25) -> SegmentationDataModule:
    found = SegmentationDataModule(
        Shapes(str(root)), Standard(48), 32, Loading(batch_size=4), val_fraction
    )
    found.setup("fit")
    return found


def test_images_that_cannot_be_read_are_no_examples(tmp_path):
    """One of them would take the readout from a whole run: training passes over such images."""
    generate(tmp_path, 16, 4)
    module = data(tmp_path)
    bad, *good = module.val_files
    bad.write_text("no image")
    assert len(list(module.masked_examples("train", 100, 64, 8))) == len(good) > 0


def test_masked_examples_are_whole_images_with_their_masks(shapes_root):
    module = data(shapes_root)
    watched = list(module.masked_examples("train", 100, 64, 8))
    assert len(watched) == len(module.val_files)
    tested = list(module.masked_examples("test", 3, 64, 8))
    assert len(tested) == 3
    for image, labels in tested:
        assert image.shape[1] % 8 == image.shape[2] % 8 == 0
        assert min(image.shape[1:]) == 64
        assert labels.dtype == torch.uint8
        assert abs(image.shape[1] / image.shape[2] - labels.shape[0] / labels.shape[1]) < 0.1
    trained = data(shapes_root, 0.0)
    assert len(list(trained.masked_examples("train", 5, 64, 8))) == 5


def test_images_without_masks_give_none(image_folder):
    module = data_of(image_folder)
    assert list(module.masked_examples("train", 4, 64, 8)) == []


def data_of(folder: Path):
    from datamodules.self_supervised import ViewsDataModule
    from datamodules.transforms.barlow_twins import BarlowTwinsViews

    source = ImageFolder(str(folder), "train", 0.2)
    return ViewsDataModule(source, BarlowTwinsViews(32), 32, Loading(batch_size=4))


def test_every_block_is_measured(shapes_root):
    torch.manual_seed(0)
    vit = vit_tiny(image_size=64, patch_size=8, depth=3, embed_dim=24).eval()
    with torch.no_grad():
        found = measure(vit, data(shapes_root).masked_examples("test", 6, 64, 8), 9, 0.6)
    assert sorted(found) == [0, 1, 2]
    assert all(len(quality.lift) == 3 for quality in found.values())
    swin = build_swin("t", 8, (1, 1, 2, 1), (1, 2, 2, 4), image_size=64, window_size=2).eval()
    with torch.no_grad():
        found = measure(swin, data(shapes_root).masked_examples("test", 6, 64, 32), 9, 0.6)
    assert [len(quality.lift) for quality in found.values()] == [1, 2, 2, 2, 4]


def test_a_segmentation_measures_and_evaluate_does_it_again(train, capsys):
    code, folder = train("run", task="segmentation", data__val_fraction=0.3, **ON)
    assert code == 0
    found = summary(folder)
    for split in ("train", "test"):
        for name in ("jaccard", "jaccard_corrected", "mass_lift", "average_precision"):
            assert math.isfinite(found[f"{split}/attention/block-02/{name}"])
        lifts = [found[f"{split}/attention/block-{block}/mass_lift"] for block in ("01", "02")]
        assert found[f"{split}/mass_lift"] == pytest.approx(sum(lifts) / 2)
        assert list((folder / "figures" / "attention_quality" / split).glob("*.png"))
    assert 0 < found["test/attention/block-01/jaccard_chance"] < 0.6
    # Of training images, though the test comes last.
    assert "attention on objects" in capsys.readouterr().out
    assert main(["--evaluate", "run", "--run.dir", str(folder.parent)]) == 0
    said = capsys.readouterr().out
    assert "evaluate/voc12_standard/attention/block-02/information" in said
    again = summary(folder)["evaluate/voc12_standard/attention/block-02/jaccard"]
    assert again == pytest.approx(found["test/attention/block-02/jaccard"], abs=1e-6)


def test_pretraining_measures_where_there_are_masks(train, capsys, image_folder):
    code, folder = train("shapes", **ON)
    assert code == 0
    assert "train/attention/block-01/jaccard" in summary(folder)
    assert main(["--evaluate", "shapes", "--run.dir", str(folder.parent)]) == 0
    code, folder = train("plain", **ON, data__name="image_folder", data__root=image_folder)
    assert code == 0
    assert not [name for name in summary(folder) if "attention" in name]


def test_a_frozen_backbone_is_measured_once(train, capsys):
    code, folder = train(
        "frozen",
        task="segmentation",
        backbone__freeze="true",
        trainer__max_epochs=3,
        data__val_fraction=0.3,
        callbacks__attention_quality__every_n_epochs=1,
        **ON,
    )
    assert code == 0
    assert len(list((folder / "figures" / "attention_quality" / "train").glob("*.png"))) == 1
    assert "attention on objects" not in capsys.readouterr().out  # it cannot change


def test_a_resnet_has_nothing_to_measure(train):
    code, folder = train("resnet", task="segmentation", backbone__name="resnet18", **ON)
    assert code == 0
    assert not [name for name in summary(folder) if "attention" in name]


def test_measuring_changes_no_weight(train):
    shared = {"backbone__drop_path": 0.3}
    assert train("plain", **shared)[0] == 0
    code, folder = train("measured", **shared, **ON, callbacks__attention_quality__every_n_epochs=1)
    assert code == 0
    assert_same(weights(folder), weights(folder.parent / "plain"))


def quality(jaccard: float = 0.3) -> Quality:
    heads = torch.tensor([0.1, 0.3, 0.2])
    return Quality(jaccard, 0.2, heads, heads - 0.2, heads + 0.3, 0.25, 0.05, 12)


def test_the_picture_shows_every_head_and_what_others_reached():
    figure = draw({0: quality(), 1: quality(0.4)}, "title", {"DINO": 0.459})
    heads = figure.axes[0].collections[0].get_array().reshape(2, 3)
    assert np.allclose(heads, [[0.1, 0.3, 0.2]] * 2)
    titles = [axis.get_title() for axis in figure.axes]
    assert "average precision (chance 0.25)" in titles
    legends = [axis.get_legend() for axis in figure.axes if axis.get_legend()]
    legend = [text.get_text() for each in legends for text in each.get_texts()]
    assert "DINO: 0.459" in legend
    assert quality().jaccard_corrected == pytest.approx(0.125)
    figures.close(figure)


def test_the_foot_explains_the_measures_and_noise_looks_like_noise():
    noise = replace(quality(0.241), jaccard_chance=0.24, information=-0.003)
    figure = draw({0: noise, 1: noise}, "title", {})
    foot = figure.get_supxlabel()
    assert all(words in foot for words in ("Mass lift", "Displaced", "Information"))
    for axis in (figure.axes[4], figure.axes[5]):
        assert axis.get_title().startswith(("chance-corrected", "information"))
        low, high = axis.get_ylim()
        assert low <= -0.1
        assert high >= 0.3
    figures.close(figure)


def test_the_counts_of_the_images_add_up(train):
    code, folder = train("run", task="segmentation")
    assert code == 0
    with np.load(folder / "test_counts.npz") as content:
        rows, classes = content["rows"], int(content["num_classes"])
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (rows[:, 1], rows[:, 2]), rows[:, 3].astype(np.int64))
    hit, union = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
    expected = (hit[union > 0] / union[union > 0]).mean()
    assert summary(folder)["test/miou"] == pytest.approx(expected, abs=1e-6)
    assert sorted(set(rows[:, 0].tolist())) == list(range(8))
    code, folder = train("without", task="segmentation", callbacks__image_counts__enabled="false")
    assert code == 0
    assert not (folder / "test_counts.npz").exists()
    assert ImageCounts().rows == []
