"""CIFAR-10 in both its forms, COCO in both its layouts."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import cifar10
from datamodules.cifar10 import CIFAR10
from datamodules.coco_stuff import COCOStuff
from datamodules.image_files import ImageFiles
from datamodules.masks.reading import read_labels
from datamodules.reading import read_rgb
from datamodules.transforms.barlow_twins import BarlowTwinsViews
from tests.conftest import summary

RNG = np.random.default_rng(0)
TRAIN, TEST = (RNG.integers(0, 256, (count, 32, 32, 3), np.uint8) for count in (20, 8))


def npz(folder: Path, **changed) -> Path:
    file = folder / "cifar10.npz"
    np.savez(file, **{"x_train": TRAIN, "x_test": TEST} | changed)
    return file


def official(folder: Path, monkeypatch) -> Path:
    """The archive's layout: rows of 3072 bytes, colour by colour, pickled."""
    place = folder / "cifar-10-batches-py"
    place.mkdir()
    monkeypatch.setattr(cifar10.Official, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    batches = [(f"data_batch_{i + 1}", TRAIN[4 * i : 4 * i + 4]) for i in range(5)]
    for name, images in [*batches, ("test_batch", TEST)]:
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        (place / name).write_bytes(pickle.dumps({"data": rows, "labels": [0] * len(images)}))
    (place / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return folder


def test_both_forms_hold_the_same_images(tmp_path, monkeypatch):
    for root in (npz(tmp_path), official(tmp_path, monkeypatch)):
        source = CIFAR10(str(root))
        for split, expected in (("train", TRAIN), ("val", TEST)):
            items = source.files(split)
            assert len(items) == len(set(items)) == len(expected)
            for item, pixels in zip(items, expected, strict=True):
                assert np.array_equal(np.array(read_rgb(item)), pixels)
        assert not set(source.files("train")) & set(source.files("val"))
    assert str(items[3]).endswith("val/00003")


def test_stored_images_become_views(tmp_path):
    dataset = ImageFiles(CIFAR10(str(npz(tmp_path))).files("train"), BarlowTwinsViews(32), seed=0)
    assert dataset[(0, 2)].views[0].shape == (3, 32, 32)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_on_cifar10(train, tmp_path, workers):
    code, folder = train(
        "cifar",
        data__name="cifar10",
        data__root=npz(tmp_path),
        data__num_workers=workers,
        trainer__max_epochs=1,
        callbacks__attention_maps__enabled="true",
    )
    assert code == 0
    assert summary(folder)["transductive"] is False


def test_broken_cifar10_is_explained(tmp_path, train, capsys):
    with pytest.raises(
        FileNotFoundError, match=r"expected a folder cifar-10-batches-py .*download"
    ):
        CIFAR10(str(tmp_path)).files("train")
    with pytest.raises(ValueError, match=r"x_test is float64 .* expected uint8"):
        CIFAR10(str(npz(tmp_path, x_test=TEST / 255))).files("val")
    other = tmp_path / "other.npz"
    np.savez(other, images=TRAIN)
    (tmp_path / "text.npz").write_text("nothing")
    for file in (other, tmp_path / "text.npz"):
        with pytest.raises(ValueError, match="no npz file of CIFAR-10"):
            CIFAR10(str(file)).files("train")
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(ValueError, match="incomplete or corrupted"):
        CIFAR10(str(tmp_path)).files("train")
    code, _ = train("missing", data__name="cifar10", data__root=tmp_path / "nowhere")
    assert code == 2
    assert "No CIFAR-10" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"PK\3\4nothing", "npy", "damaged"])
def test_what_is_no_npz_file_of_cifar10_is_said(tmp_path, content):
    file = tmp_path / "cifar10.npz"
    if content == "npy":
        with file.open("wb") as stream:
            np.save(stream, TRAIN)
    elif content == "damaged":
        np.savez_compressed(file, x_train=TRAIN, x_test=TEST)
        damaged = bytearray(file.read_bytes())
        damaged[300] ^= 255
        file.write_bytes(damaged)
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"cifar10\.npz is no npz file of CIFAR-10"):
        CIFAR10(str(file)).files("train")


@pytest.mark.parametrize("labels", [np.arange(20), np.arange(20) % 10 - 1, np.arange(20) / 3])
def test_labels_that_are_no_classes_of_cifar10_are_refused(tmp_path, labels):
    with pytest.raises(ValueError, match=r"y_train has labels .* whole numbers from 0 to 9"):
        CIFAR10(str(npz(tmp_path, y_train=labels))).files("train")


def test_labels_of_cifar10_may_be_stored_as_floats(tmp_path):
    labels = np.arange(20.0) % 10
    found = CIFAR10(str(npz(tmp_path, y_train=labels))).labels("train")[1]
    assert found == labels.tolist()
    assert all(type(label) is int for label in found)


@pytest.mark.parametrize("part", ["x_train", "x_test"])
def test_no_image_of_cifar10_is_none(tmp_path, part):
    with pytest.raises(ValueError, match=rf"{part} is uint8 \(0, 32, 32, 3\)"):
        CIFAR10(str(npz(tmp_path, **{part: TRAIN[:0]}))).files("train")


@pytest.mark.parametrize("layout", ["images/{}2017", "{}2017"])
def test_coco_images(tmp_path, layout):
    for split, count in (("train", 3), ("val", 2)):
        place = tmp_path / layout.format(split)
        place.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (9, 9)).save(place / f"{number:012d}.jpg")
    source = COCOStuff(str(tmp_path))
    assert [len(source.files(split)) for split in ("train", "val")] == [3, 2]
    with pytest.raises(ValueError, match="train and val only"):
        source.files("all")


def test_missing_coco_is_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected one of .*images/train2017"):
        COCOStuff(str(tmp_path)).files("train")


def coco(folder: Path, value: int = 24) -> Path:
    """Two images a split: a giraffe on grass under an unlabelled sky."""
    for split in ("train2017", "val2017"):
        images, masks = folder / "images" / split, folder / "stuffthingmaps" / split
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for index in range(8):
            Image.fromarray(RNG.integers(0, 255, (40, 48, 3), np.uint8)).save(
                images / f"{index:012d}.jpg"
            )
            mask = np.full((40, 48), 123, np.uint8)  # category 124, grass
            mask[10:30, 10:30] = value
            mask[:5] = 255
            Image.fromarray(mask).save(masks / f"{index:012d}.png")
    return folder


def test_a_root_of_coco_one_off_is_told_the_right_one(tmp_path):
    root = coco(tmp_path / "coco")
    with pytest.raises(FileNotFoundError, match=rf"Did you mean --data\.root {root}\?"):
        COCOStuff(str(tmp_path)).files("train")
    source = COCOStuff(str(root / "images"))
    assert len(source.files("train")) == 8
    with pytest.raises(FileNotFoundError, match=rf"Did you mean --data\.root {root}\?"):
        source.pairs("train")


def test_coco_stuff_has_171_classes_and_their_official_numbers():
    names = COCOStuff.classes
    assert len(names) == len(set(names)) == 171
    assert (names[0], names[11], names[79], names[80], names[-1]) == (
        "person",
        "stop sign",  # category 13: 12 does not occur
        "toothbrush",
        "banner",
        "wood",
    )


def test_coco_stuff_masks_become_labels(tmp_path):
    source = COCOStuff(str(coco(tmp_path)))
    pairs = source.pairs("train")
    assert len(pairs) == 8
    assert all(image.stem == mask.stem for image, mask in pairs)
    labels = read_labels(pairs[0][1], 171, COCOStuff.meanings)
    found = {int(label) for label in labels.unique()}
    assert {source.classes[label] for label in found - {255}} == {"giraffe", "grass"}
    assert 255 in found


def test_a_category_that_does_not_occur_is_named(tmp_path):
    source = COCOStuff(str(coco(tmp_path, value=11)))  # street sign
    with pytest.raises(ValueError, match=r"has labels \[11\]: expected those of the data set"):
        read_labels(source.pairs("val")[0][1], 171, COCOStuff.meanings)


def test_panoptic_masks_are_not_these(tmp_path):
    root = coco(tmp_path)
    (root / "stuffthingmaps").rename(root / "annotations")
    (root / "annotations" / "panoptic_train2017").mkdir()
    with pytest.raises(FileNotFoundError, match=r"panoptic_train2017 holds panoptic masks"):
        COCOStuff(str(root)).pairs("train")


def test_coco_stuff_is_segmented_but_not_by_the_protocol_of_the_study(train, tmp_path, capsys):
    shared = {
        "task": "segmentation",
        "data__name": "coco_stuff",
        "data__root": coco(tmp_path / "coco"),
        "data__batch_size": 4,
        "data__val_fraction": 0.3,
        "trainer__max_epochs": 1,
        "callbacks__class_iou__enabled": "true",
        "callbacks__confusion_matrix__enabled": "true",
    }
    code, folder = train("run", **shared)
    assert code == 0
    assert summary(folder)["test/miou"] >= 0
    assert list(folder.glob("figures/class_iou/test/*.png"))
    assert train("other", **shared, segmentation__protocol="voc12_seed224")[0] == 2
    assert "counts void as background, which coco_stuff does not have" in capsys.readouterr().err
