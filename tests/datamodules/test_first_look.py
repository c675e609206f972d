"""What some images show is said before training: that they are black, that a file holds several."""

import numpy as np
import pytest
from PIL import Image

from datamodules.first_look import warn_of_darkness, warn_of_several
from datamodules.image_folder import ImageFolder
from datamodules.loading import Loading
from datamodules.masks.check import check_masks
from datamodules.self_supervised import ViewsDataModule
from datamodules.shapes import Shapes, generate
from datamodules.transforms.barlow_twins import BarlowTwinsViews
from datamodules.voc import voc_pairs


@pytest.mark.parametrize(("white", "is_dark"), [(4095, True), (65535, False)])
def test_images_that_are_nearly_black_are_said(tmp_path, recwarn, white, is_dark):
    for number in range(3):
        ramp = np.linspace(0, white, 64).reshape(8, 8).astype(np.uint16)
        Image.fromarray(ramp).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"")
    warn_of_darkness(sorted(tmp_path.iterdir()))
    said = [str(warning.message) for warning in recwarn]
    assert len(said) == is_dark
    assert all("of 3 examples no pixel is above 16 of 255" in each for each in said)


def pages(file, number=3):
    first, *others = (Image.new("L", (32, 32), 40 + 90 * page) for page in range(number))
    first.save(file, save_all=True, append_images=others)
    return file


def messages(recwarn):
    return [str(warning.message) for warning in recwarn]


@pytest.mark.parametrize("suffix", ["tif", "TIFF", "gif", "png", "webp"])
def test_files_of_several_pictures_are_said(tmp_path, recwarn, suffix):
    files = [pages(tmp_path / f"{number}.{suffix}", number) for number in (1, 2, 3, 1)]
    warn_of_several(files, "the scans")
    (said,) = messages(recwarn)
    assert said.startswith("Several pictures are in 2 of 4 files of the scans that were looked at")
    assert f"as {files[1]}. The first of each is used" in said


def test_previews_beside_a_jpeg_are_not_said(tmp_path, recwarn):
    file = pages(tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    with Image.open(file) as image:
        assert image.n_frames == 3
    (tmp_path / "b.tif").write_bytes(b"II*")
    warn_of_several([file, tmp_path / "b.tif"], "the images")
    assert not messages(recwarn)


def test_training_images_and_masks_of_several_pictures_are_said(tmp_path, recwarn):
    for number in range(4):
        pages(tmp_path / f"{number}.tif")
    source = ImageFolder(str(tmp_path), "all")
    data = ViewsDataModule(source, BarlowTwinsViews(32, (0.5, 1.0), False), 32, Loading(2, 0, 0))
    data.setup("fit")
    data.check(tmp_path / "cache")
    masked = Shapes(str(tmp_path / "masks"))
    pairs = voc_pairs(generate(tmp_path / "masks", 3, 2), "train")
    image, mask = pairs[0]
    labels = Image.open(mask)
    mask = mask.with_suffix(".tif")
    labels.save(mask, save_all=True, append_images=[labels])
    pairs[0] = (image, mask)
    check_masks(masked, pairs, "training images", judged=(), cache=tmp_path / "cache")
    said = messages(recwarn)
    of_images, of_masks = (each for each in said if each.startswith("Several pictures are in"))
    assert "4 of 4 files of the training images that" in of_images
    assert f"1 of 3 files of the masks of the training images that were looked at, as {mask}" in (
        of_masks
    )
