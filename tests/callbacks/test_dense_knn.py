"""Dense k-NN in runs: before, while and after training, on training images, without a trace."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.dense_knn import METRIC, measure
from datamodules import masked_squares as masked_squares_module
from datamodules.listing import held_out
from datamodules.masked_squares import masked_squares
from datamodules.shapes import CLASSES, Shapes
from models.backbones.resnet import resnet18
from models.backbones.swin import build as build_swin
from models.backbones.vit import vit_tiny
from models.heads.base import resize
from models.measures.dense_knn import PatchMemory, labelled_patches
from models.measures.segmentation import metrics
from tests.conftest import assert_same, summary, weights
from utils.metrics_file import read_metrics

ON = {"callbacks__dense_knn__enabled": "true", "callbacks__dense_knn__every_n_epochs": 1}


def test_squares_are_training_images_cut_alike(shapes_root):
    source = Shapes(str(shapes_root))
    known, queries = masked_squares(source, 100, 0.3, 32)
    assert len(known) + len(queries) == 24
    assert not set(known.pairs) & set(queries.pairs)
    assert set(known.pairs + queries.pairs) == set(source.pairs("train"))
    assert all(held_out(image.stem, 0.3) for image, _ in queries.pairs)
    for (image, labels), (file, mask) in zip(queries, queries.pairs, strict=True):
        assert image.shape == (3, 32, 32)
        with Image.open(file) as opened, Image.open(mask) as stored:
            side, width, height = min(opened.size), *opened.size
            box = (round((width - side) / 2), round((height - side) / 2))
            box = (*box, box[0] + side, box[1] + side)
            truth = torch.from_numpy(np.array(stored.crop(box)))
        assert torch.equal(labels, truth)
    assert len(masked_squares(source, 10, 0.3, 32)[0]) < 10


def test_an_image_that_cannot_be_read_is_left_out(shapes_root, tmp_path):
    source = Shapes(str(shapes_root))
    known, _ = masked_squares(source, 4, 0.0, 32)
    known.pairs[1] = (tmp_path / "nothing.jpg", known.pairs[1][1])
    assert len(list(known)) == 3


def test_images_are_decoded_once_as_far_as_memory_allows(shapes_root, monkeypatch):
    read: list[str] = []
    original = masked_squares_module.read_pair

    def counted(file, *rest):
        read.append(file.name)
        return original(file, *rest)

    monkeypatch.setattr(masked_squares_module, "read_pair", counted)
    source = Shapes(str(shapes_root))
    for most, times in ((2**30, 1), (0, 3)):
        read.clear()
        known, _ = masked_squares(source, 6, 0.0, 32)
        known.decoded.most_bytes = most
        (first, *others) = [list(known) for _ in range(3)]
        assert all(map(read.count, read))
        assert len(read) == times * len(known)
        for again in others:
            for one, other in zip(first, again, strict=True):
                assert all(map(torch.equal, one, other))
    # Of three images a budget of two keeps two, and holds no more than it says.
    known, _ = masked_squares(source, 3, 0.0, 32)
    known.decoded.most_bytes = 2 * sum(part.nbytes for part in next(iter(known)))
    read.clear()
    for _ in range(2):
        held = [part for square in known for part in square]
    assert read.count(read[-1]) == 2
    assert all(part.untyped_storage().nbytes() == part.nbytes for part in held)


def backbones():
    torch.manual_seed(0)
    yield vit_tiny(image_size=64, patch_size=8, depth=2, embed_dim=24)
    yield build_swin("t", 8, (1, 1, 2, 1), (1, 2, 2, 4), image_size=64, window_size=2)
    yield resnet18(image_size=64, layers="last4")


def test_any_backbone_is_measured_as_one_image_at_a_time(shapes_root):
    known, queries = masked_squares(Shapes(str(shapes_root)), 24, 0.3, 64)
    for backbone in backbones():
        backbone.eval()
        memory, counted = PatchMemory(backbone.map_channels[-1], 9, 4), metrics(9)
        with torch.no_grad():
            parts = [
                labelled_patches(backbone(image[None]).maps[-1][0], labels, 9)
                for image, labels in known
            ]
            memory.fill(*(torch.cat(part) for part in zip(*parts, strict=True)))
            for image, labels in queries:
                shares = memory.label_maps(backbone(image[None]).maps[-1])
                counted.update(resize(shares, labels.shape).argmax(1).int(), labels[None].int())
            found = measure(backbone, known, queries, len(CLASSES), 4)
        assert 0 < found < 1
        assert found == pytest.approx(float(counted.compute()["miou"]), abs=1e-3)
    with torch.no_grad(), pytest.raises(ValueError, match="void all over"):
        measure(backbone, [], queries, 9)


@pytest.mark.parametrize("task", ["barlow_twins", "dino"])
def test_a_run_is_measured_before_every_epoch_and_after(train, task):
    code, folder = train("run", task=task, trainer__max_epochs=3, **ON)
    assert code == 0
    measured = {
        s: r[METRIC] for s, r in read_metrics(folder / "metrics.csv").items() if METRIC in r
    }
    steps = summary(folder)["steps"]
    assert sorted(measured) == [0, steps // 3 - 1, 2 * steps // 3 - 1, steps - 1]
    assert measured[steps - 1] == pytest.approx(summary(folder)[METRIC])
    assert all(0 < value < 1 for value in measured.values())


def test_measuring_changes_no_weight(train):
    shared = {"backbone__drop_path": 0.3}
    assert train("plain", **shared)[0] == 0
    code, folder = train("measured", **shared, **ON)
    assert code == 0
    assert_same(weights(folder), weights(folder.parent / "plain"))
    assert math.isfinite(summary(folder)[METRIC])


def test_what_cannot_be_measured_is_said_once_and_ends_no_run(train, monkeypatch):
    def all_void(self):
        return iter([(torch.zeros(3, 32, 32, dtype=torch.uint8), torch.full((40, 40), 255))] * 3)

    monkeypatch.setattr("datamodules.masked_squares.MaskedSquares.__iter__", all_void)
    with pytest.warns(UserWarning, match="void all over") as said:
        code, folder = train("void", may_fail=True, **ON)
    assert code == 0
    assert METRIC not in summary(folder)
    assert sum("void all over" in str(each.message) for each in said) == 1


@pytest.mark.parametrize("queries", [1, 255])
def test_one_class_alone_is_not_perfect_but_not_measured(train, monkeypatch, said, queries):
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)

    def squares(source, count, fraction, size):
        return [(image, torch.full((40, 40), 1))] * 3, [(image, torch.full((40, 40), queries))] * 2

    monkeypatch.setattr("callbacks.dense_knn.masked_squares", squares)
    code, folder = train("run", **ON)
    assert code == 0
    assert METRIC not in summary(folder)
    assert sum("one class only" in line for line in said) == 1


def test_bad_settings_are_refused_in_words(train, capsys, image_folder):
    assert train("zero", **ON, callbacks__dense_knn__k=0)[0] == 2
    assert "expected at least 1" in capsys.readouterr().err
    off = {"callbacks__dense_knn__k": 5, "data__name": "image_folder", "data__root": image_folder}
    assert train("unmasked", **off)[0] == 2
    assert "no effect with --data.name image_folder" in capsys.readouterr().err.replace("\n", " ")
