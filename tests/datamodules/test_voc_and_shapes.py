import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.loading import Loading
from datamodules.self_supervised import ViewsDataModule
from datamodules.shapes import CLASSES, draw, generate
from datamodules.transforms.barlow_twins import BarlowTwinsViews
from datamodules.voc import VOC, find_voc, voc_files
from utils.palette import VOID, voc_palette


def test_shapes_lie_in_the_official_layout(shapes_root):
    folder = find_voc(shapes_root)
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


def test_every_class_and_the_void_border_occur():
    seen: set[int] = set()
    widths = []
    for index in range(40):
        labels = np.asarray(draw(index)[1])
        seen |= set(np.unique(labels).tolist())
        runs = "".join("v" if v else "." for v in (labels == VOID).ravel()).split(".")
        widths.append(min(len(run) for run in runs if run))
    assert seen == {*range(len(CLASSES)), VOID}
    assert max(widths) <= 3


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


def test_voc_palette_is_the_official_one():
    # Aeroplane, bicycle, person, tv monitor, void.
    expected = {1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    for label, colour in {**expected, VOID: (224, 224, 192)}.items():
        assert tuple(voc_palette()[label]) == colour


@pytest.mark.parametrize("place", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_is_found_wherever_it_usually_lies(shapes_root, place):
    folder = find_voc(shapes_root / place)
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
    with pytest.raises(FileNotFoundError, match=r"val\.txt is missing"):
        voc_files(folder, "val")
