import hashlib
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.loading import Loading
from datamodules.masks.reading import read_labels
from datamodules.self_supervised import ViewsDataModule
from datamodules.shapes import CLASSES, Shapes, draw, generate
from datamodules.transforms.barlow_twins import BarlowTwinsViews
from datamodules.voc import VOC, voc_files, voc_pairs
from tests.conftest import files_at_most
from utils.palette import VOID, voc_palette


def test_shapes_lie_in_the_official_layout(shapes_root):
    folder = VOC(str(shapes_root)).folder
    assert folder == shapes_root / "VOCdevkit" / "VOC2012"
    train, val = voc_files(folder, "train"), voc_files(folder, "val")
    assert (len(train), len(val)) == (24, 8)
    assert not set(train) & set(val)
    for file in train + val:
        with Image.open(file) as image:
            mask = Image.open(folder / "SegmentationClass" / f"{file.stem}.png")
            assert image.format == "JPEG"
            assert mask.mode == "P"
            assert mask.size == image.size
            palette = np.array(mask.getpalette()).reshape(-1, 3)
            assert np.array_equal(palette, voc_palette())


def test_where_images_cannot_be_generated_another_place_is_asked_for(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Set --data\.root to a folder"):
        generate(tmp_path / "file" / "shapes", 4, 2)
    with files_at_most(100), pytest.raises(OSError, match=r"\(File too large\)\. Set --data\.root"):
        generate(tmp_path / "full", 4, 2)
    assert not [*(tmp_path / "full").iterdir()]


def test_every_class_and_the_void_border_occur():
    seen: set[int] = set()
    widths = []
    for index in range(40):
        labels = np.asarray(draw(index)[1])
        seen |= set(np.unique(labels).tolist())
        runs = "".join("v" if v else "." for v in (labels == VOID).ravel()).split(".")
        widths.append(min(len(run) for run in runs if run))
    assert seen == {*range(len(CLASSES)), VOID}
    assert max(widths) <= 4  # along a row: 3 px across an oblique outline


def test_the_same_bytes_every_time(shapes_root, tmp_path):
    def digest(root: Path) -> list[str]:
        files = sorted(file for file in root.rglob("*") if file.is_file())
        return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]

    generate(tmp_path, num_train=24, num_val=8)
    assert digest(tmp_path) == digest(shapes_root)


def test_two_runs_may_generate_at_once(tmp_path):
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(lambda _: generate(tmp_path, 6, 2), range(3)))
    assert len(set(folders)) == 1
    assert len(voc_files(folders[0], "train")) == 6
    assert [file.name for file in tmp_path.iterdir()] == ["VOCdevkit"]  # nothing half-done stays


def test_other_images_are_neither_used_nor_removed(shapes_root, tmp_path):
    (tmp_path / "VOCdevkit").mkdir()
    (tmp_path / "VOCdevkit" / "mine.jpg").touch()
    with pytest.raises(FileExistsError, match="not drawn by this version"):
        generate(tmp_path)
    assert (tmp_path / "VOCdevkit" / "mine.jpg").exists()


def test_the_class_of_an_image_is_that_of_its_large_object(shapes_root):
    source = Shapes(str(shapes_root))
    classes, labels = source.labels("train")
    assert classes == CLASSES[1:]
    for (_, mask), label in zip(source.pairs("train"), labels, strict=True):
        drawn = np.asarray(Image.open(mask))
        sizes = [np.sum(drawn == value) for value in range(1, len(CLASSES))]
        assert label == int(np.argmax(sizes))
        assert max(sizes) > 0.05 * drawn.size
    assert len(set(labels)) > 4


def test_what_an_image_shares_is_its_object():
    # Means over halves: those of one image's ground, and of its object, agree no better than
    # those of different images; so colour tells no image from another.
    ground, objects = [], []
    for index in range(200):
        image, mask = (np.asarray(each) for each in draw(index))
        half = image.shape[1] // 2
        for means, where in ((ground, mask == 0), (objects, (mask > 0) & (mask != VOID))):
            left, right = (
                image[:, part][where[:, part]].mean(0)
                for part in (slice(0, half - 6), slice(half + 6, None))
            )
            means.append((left, right))
    for means in (ground, objects):
        left, right = (np.array(side) for side in zip(*means, strict=True))
        hue = (left - left.mean(1, keepdims=True), right - right.mean(1, keepdims=True))
        correlation = np.corrcoef(hue[0].ravel(), hue[1].ravel())[0, 1]
        assert abs(correlation) < 0.15


def test_voc_palette_is_the_official_one():
    # Aeroplane, bicycle, person, tv monitor, void.
    expected = {1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    for label, colour in {**expected, VOID: (224, 224, 192)}.items():
        assert tuple(voc_palette()[label]) == colour


@pytest.mark.parametrize("place", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_is_found_wherever_it_usually_lies(shapes_root, place):
    folder = VOC(str(shapes_root / place)).folder
    assert (folder / "JPEGImages").samefile(shapes_root / "VOCdevkit" / "VOC2012" / "JPEGImages")


def voc(root: Path, split: str) -> VOC:
    return VOC(str(root), split)


def test_pretraining_never_sees_validation_images_unmarked(tmp_path):
    folder = generate(tmp_path, 6, 3)
    Image.new("RGB", (20, 20)).save(folder / "JPEGImages" / "unlisted.jpg")
    val = set(voc(tmp_path, "train").files("val"))
    sizes = {}
    for split in ("train", "all_minus_val", "all"):
        data = ViewsDataModule(voc(tmp_path, split), BarlowTwinsViews(16), 16, Loading(2))
        data.setup("fit")
        sizes[split] = len(data.train_files)
        assert data.transductive == (split == "all")
        assert bool(set(data.train_files) & val) == (split == "all")
    assert sizes == {"train": 6, "all_minus_val": 7, "all": 10}


def test_broken_voc_folders_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--data\.download true"):
        voc(tmp_path / "nowhere", "train").files("train")
    folder = generate(tmp_path, 4, 2)
    voc_files(folder, "train")[0].unlink()
    with pytest.raises(FileNotFoundError, match="1 of 4 images"):
        voc_files(folder, "train")
    (folder / "ImageSets" / "Segmentation" / "train.txt").write_text("")
    with pytest.raises(ValueError, match="lists no images"):
        voc_files(folder, "train")
    (folder / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"val\.txt is missing.*one a line"):
        voc_files(folder, "val")


def test_other_suffixes_and_any_editor_s_lists_are_understood(tmp_path):
    folder = generate(tmp_path, 4, 2)
    images, masks = folder / "JPEGImages", folder / "SegmentationClass"
    expected = [file.stem for file in voc_files(folder, "train")]
    for name, suffix in zip(expected, (".JPG", ".jpeg", ".png", ".jpg"), strict=True):
        (images / f"{name}.jpg").rename(images / f"{name}{suffix}")
    (masks / f"{expected[1]}.png").rename(masks / f"{expected[1]}.PNG")
    listing = folder / "ImageSets" / "Segmentation" / "train.txt"
    listing.write_bytes("\r\n".join([f"{expected[0]}.JPG", *expected[1:]]).encode("utf-8-sig"))
    pairs = voc_pairs(folder, "train")
    assert [(image.stem, mask.stem) for image, mask in pairs] == [(n, n) for n in expected]
    assert [image.suffix for image, _ in pairs] == [".JPG", ".jpeg", ".png", ".jpg"]


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "{} -1",
        "{}  1",
        "{}.jpg",
        "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png",
        "JPEGImages/{0}.jpg\tSegmentationClass/{0}.png",
        "{0}.jpg {0}.png",
    ],
)
@pytest.mark.parametrize("name", ["my photo {}", "{}. of v1.2", "{}"])
def test_names_in_lists_may_hold_spaces(tmp_path, line, name):
    folder = generate(tmp_path, 4, 2)
    listing = folder / "ImageSets" / "Segmentation" / "train.txt"
    names = []
    for number, old in enumerate(voc_files(folder, "train")):
        names.append(name.format(number))
        old.rename(old.with_name(f"{names[-1]}.jpg"))
    listing.write_text("\n".join(map(line.format, names)))
    assert [file.stem for file in voc_files(folder, "train")] == names


@pytest.mark.parametrize(("listed", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_an_accent_in_a_list_is_that_of_a_file(tmp_path, listed, stored):
    folder = generate(tmp_path, 4, 2)
    listing = folder / "ImageSets" / "Segmentation" / "train.txt"
    image, mask = voc_pairs(folder, "train")[0]
    for file in (image, mask):
        file.rename(file.with_stem(unicodedata.normalize(stored, "café")))
    listing.write_text(
        listing.read_text().replace(image.stem, unicodedata.normalize(listed, "café"))
    )
    found = voc_pairs(folder, "train")[0]
    assert [file.stem for file in found] == [unicodedata.normalize(stored, "café")] * 2


def test_an_image_to_judge_by_is_one_however_it_is_written(tmp_path):
    folder = generate(tmp_path, 4, 2)
    lists = folder / "ImageSets" / "Segmentation"
    image, mask = voc_pairs(folder, "val")[0]
    for file in (image, mask):
        file.rename(file.with_stem(unicodedata.normalize("NFD", "café")))
    (lists / "val.txt").write_text(unicodedata.normalize("NFD", "café"))
    (lists / "train.txt").write_text(unicodedata.normalize("NFC", "café"))
    with pytest.raises(ValueError, match="holds 1 validation image, first: café"):
        voc_files(folder, "train")


def test_other_data_in_its_layout_has_its_own_classes(tmp_path):
    folder = generate(tmp_path, 4, 2)
    assert voc(tmp_path, "train").classes[1] == "aeroplane"
    assert voc(tmp_path, "train").published_jaccard
    names = [name.upper() for name in CLASSES[1:]]
    (folder / "classes.yaml").write_text(f"names: {['background', *names]}")
    source = voc(tmp_path, "train")
    assert source.classes == ("background", *names)
    assert not source.published_jaccard
    mask = source.pairs("train")[0][1]
    read_labels(mask, len(CLASSES), source.meanings)
    (folder / "classes.yaml").write_text("names: [background, disc]")
    source = voc(tmp_path, "train")
    with pytest.raises(ValueError, match=r"values that classes\.yaml does not name"):
        read_labels(mask, 2, source.meanings)
