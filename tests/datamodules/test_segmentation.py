"""Images stay with their masks, void survives, and broken data is named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.utilities import move_data_to_device
from torchvision import tv_tensors
from torchvision.transforms import v2

from datamodules.loading import Loading
from datamodules.masked_images import SegmentationBatch, collate
from datamodules.masks.reading import read_labels
from datamodules.reading import read_rgb
from datamodules.seeding import seeded
from datamodules.segmentation import SegmentationDataModule
from datamodules.shapes import Shapes, generate
from datamodules.transforms.segmentation import (
    FixedViews,
    Seed224,
    Standard,
    TrainingCrop,
)
from datamodules.voc import CLASSES, VOC, voc_files, voc_pairs
from utils.palette import MEAN_COLOUR

VOID = 255


def module(root: Path, **settings) -> SegmentationDataModule:
    loading = Loading(**{"batch_size": 4, "seed": 3} | settings)
    data = SegmentationDataModule(Shapes(str(root)), Standard(48), 32, loading, 0.25)
    data.setup("fit")
    return data


def marked(height: int, width: int) -> tuple[Image.Image, torch.Tensor]:
    """An image whose red channel is its label: wherever it goes, the mask has to follow."""
    rows, columns = np.mgrid[:height, :width]
    labels = ((rows // 16 + columns // 16) % 4).astype(np.uint8)
    pixels = np.stack([labels * 60, np.full_like(labels, 90), np.full_like(labels, 90)], -1)
    return Image.fromarray(pixels), torch.from_numpy(labels)


def test_crops_keep_image_and_mask_together():
    crop = TrainingCrop(64, Standard(64))
    crop.distort.p = 0.0  # colours are the check
    padded = 0
    for key in range(40):
        with seeded(key):
            image, labels = crop(*marked(80, 100))
        assert image.shape == (3, 64, 64)
        assert labels.shape == (64, 64)
        assert image.dtype == labels.dtype == torch.uint8
        void = labels == VOID
        assert set(labels.unique().tolist()) <= {0, 1, 2, 3, VOID}
        padded += int(void.any())
        for channel, value in enumerate(MEAN_COLOUR):
            assert (image[channel][void] == value).all()
        guessed = (image[0].float() / 60).round()
        wrong = (guessed != labels) & ~void
        # Bilinear and nearest resizing differ at the edges of the squares only.
        assert wrong.sum() < 0.25 * (~void).sum() + 20
    assert 5 < padded < 35


@pytest.mark.parametrize("size", [32, 64, 200])
def test_crops_are_torchvisions(size):
    image, labels = marked(80, 100)
    sides = list(range(size // 2, 2 * size + 1))
    reference = v2.Compose(
        [
            v2.RandomShortestSize(sides),
            v2.RandomCrop(size, pad_if_needed=True, fill=MEAN_COLOUR),
            v2.RandomHorizontalFlip(0.5),
            v2.ToImage(),
            v2.ToDtype(torch.float64, scale=True),
            v2.RandomPhotometricDistort(),
        ]
    )
    # Labels are resized as images are, by their centres; torchvision's masks are not.
    of_labels = v2.Compose(
        [
            v2.RandomShortestSize(sides, interpolation=v2.InterpolationMode.NEAREST_EXACT),
            v2.RandomCrop(size, pad_if_needed=True, fill=VOID),
            v2.RandomHorizontalFlip(0.5),
        ]
    )
    crop, differences = TrainingCrop(size, Standard(size)), []
    for key in range(40):
        with seeded(key):
            expected = reference(image)
            next_draw = torch.rand(1)
        with seeded(key):
            mask = of_labels(tv_tensors.Image(labels[None]))[0]
        with seeded(key):
            found, cut = crop(image, labels)
            assert torch.equal(torch.rand(1), next_draw)
        assert torch.equal(cut, mask)
        differences.append((found - expected * 255).abs().mean().item())
    assert np.mean(differences) < 0.6  # grey levels


def test_labels_lie_where_their_image_does():
    # A bright half: its edge is in the pixels of the view, and rounded in its labels.
    labels = np.zeros((75, 100), np.uint8)
    labels[:, 50:] = 1
    image = Image.fromarray(np.stack([labels * 255] * 3, -1))
    shifts = []
    for side in range(20, 150, 3):
        view = FixedViews(side, Standard(side), [1.0], 1).view(0)
        with seeded(side):
            seen, cut = view(image, torch.from_numpy(labels))
        shift = (seen[0].float() / 255).mean() - cut.float().mean()
        shifts.append(float(shift) * side)
    assert max(map(abs, shifts)) <= 0.51
    assert abs(np.mean(shifts)) < 0.1  # pixels


def test_every_other_fixed_view_is_the_mirror_image():
    pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8)
    labels = torch.randint(0, 5, (32, 32), dtype=torch.uint8)
    views = FixedViews(32, Standard(32), [1.0, 2.0], 3)
    assert len(views) == 12
    for number in range(6):  # at scale 1 a crop is the whole image
        seen, cut = views.view(number)(Image.fromarray(pixels.numpy()), labels)
        if number % 2:
            seen, cut = seen.flip(-1), cut.flip(-1)
        assert torch.equal(seen, pixels.movedim(-1, 0))
        assert torch.equal(cut, labels)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_padding_has_the_mean_colour_whatever_file_it_is(tmp_path, suffix):
    marked(40, 60)[0].save(tmp_path / f"a.{suffix}")
    image, labels = read_rgb(tmp_path / f"a.{suffix}"), torch.zeros(40, 60, dtype=torch.uint8)
    crop = TrainingCrop(64, Standard(64))
    crop.distort.p = 0.0
    for prepare in (FixedViews(64, Standard(64), [0.5], 1).view(0), crop):
        with seeded(4):
            seen, cut = prepare(image, labels)
        void = cut == VOID
        assert void.any()
        assert torch.equal(seen[:, void][:, 0], torch.tensor(MEAN_COLOUR, dtype=torch.uint8))


def test_no_vertical_flips_but_horizontal_ones():
    gradient = np.zeros((64, 64), np.uint8)
    gradient[:32], gradient[:, :32] = 1, gradient[:, :32] + 2
    image = Image.fromarray(np.stack([gradient] * 3, -1))
    crop = TrainingCrop(64, Standard(64))
    orientations = set()
    for key in range(60):
        with seeded(key):
            _, labels = crop(image, torch.from_numpy(gradient))
        kept = labels != VOID
        ys, other_ys = (torch.nonzero(kept & (labels % 2 == v))[:, 0] for v in (1, 0))
        if len(ys) and len(other_ys):
            assert ys.float().mean() < other_ys.float().mean()  # the upper half stays above
        left, right = (torch.nonzero(kept & (labels // 2 == v))[:, 1].float() for v in (1, 0))
        if len(left) and len(right):
            orientations.add(bool(left.mean() < right.mean()))
    assert orientations == {True, False}


def test_standard_keeps_aspect_and_the_original_mask():
    image, labels = marked(80, 100)
    labels[0, 0] = VOID
    resized, judged = Standard(40)(image, labels)
    assert resized.shape == (3, 40, 50)
    assert torch.equal(judged, labels)
    assert torch.equal(Standard(40).training_labels(labels), labels)


def test_seed224_squashes_and_counts_void_as_background():
    image, labels = marked(80, 100)
    labels[:40] = VOID
    resized, judged = Seed224(96)(image, labels)
    assert resized.shape == (3, 224, 224)
    assert judged.shape == (224, 224)
    nearest = Image.fromarray(labels.numpy()).resize((224, 224), Image.Resampling.NEAREST)
    expected = torch.from_numpy(np.array(nearest))
    assert torch.equal(judged, expected.where(expected != VOID, 0))
    assert (Seed224(96).training_labels(labels)[:40] == 0).all()
    larger, same = Seed224(96, 1.5)(image, labels)
    assert larger.shape == (3, 336, 336)
    assert torch.equal(same, judged)


def test_batches_give_every_image_back_at_its_own_size(shapes_root):
    data = module(shapes_root)
    samples = [data.test_set[(0, index)] for index in range(5)]
    batch = collate(samples)
    assert len(batch) == 5
    for (image, labels), sample in zip(batch.items(), samples, strict=True):
        assert torch.equal(image, sample.image)
        assert torch.equal(labels, sample.labels)
    outside = batch.labels.clone()
    for row, (_, _, height, width) in enumerate(batch.sizes.tolist()):
        outside[row, :height, :width] = VOID
    assert (outside == VOID).all()
    previews = batch.previews(2)
    assert torch.equal(previews["image"], batch.images[:2])
    assert torch.equal(previews["labels"], batch.labels[:2])
    for shown in previews.values():  # and the rest of the batch is not kept for them
        assert shown.untyped_storage().nbytes() == shown.nbytes


def test_what_is_held_out_is_cut_from_the_training_images(shapes_root):
    data = module(shapes_root)
    test = set(Shapes(str(shapes_root)).files("val"))
    train, val = set(data.train_files), set(data.val_files)
    assert train
    assert val
    assert not train & val
    assert not (train | val) & test
    assert train | val == set(Shapes(str(shapes_root)).files("train"))
    assert len(data.test_set) == len(test) == 8
    assert not data.transductive
    seen = [i for batch in data.test_dataloader() for i in batch.indices.tolist()]
    assert seen == list(range(8))  # the last, short batch too


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_are_a_function_of_seed_epoch_and_index(shapes_root, workers):
    first, second = (
        list(module(shapes_root, num_workers=n).train_dataloader()) for n in (0, workers)
    )
    assert len(first) > 1
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
    data = module(shapes_root)
    one, again, other = (data.train_set[draw] for draw in ((0, 1), (0, 1), (1, 1)))
    assert torch.equal(one.image, again.image)
    assert not torch.equal(one.image, other.image)


def broken(tmp_path: Path) -> Path:
    return generate(tmp_path, 6, 3)


def test_foreign_labels_are_named(tmp_path):
    folder = broken(tmp_path)
    _, mask = voc_pairs(folder, "train")[2]
    labels = np.array(Image.open(mask))
    labels[3, 4] = 151
    Image.fromarray(labels).save(mask)
    with pytest.raises(ValueError, match=rf"{mask.name} has labels \[151\]: expected 0 to 20"):
        read_labels(mask, len(CLASSES))
    Image.new("RGB", (9, 9)).save(mask)
    with pytest.raises(ValueError, match="mode RGB"):
        read_labels(mask, len(CLASSES))
    mask.write_text("nothing")
    with pytest.raises(ValueError, match=rf"{mask.name} \(not a picture .*\) cannot be read"):
        read_labels(mask, len(CLASSES))


@pytest.mark.parametrize("num_classes", [1, 21, 254, 255])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_every_value_is_its_label_or_is_refused(tmp_path, num_classes, mode):
    known = np.array([*range(num_classes), VOID], np.uint8)
    for values in (known, np.append(known, num_classes).astype(np.uint8)):
        mask = Image.fromarray(values[None])
        if mode == "P":
            mask.putpalette(bytes(768))
        mask.save(tmp_path / "mask.png")
        if set(values) <= set(known):
            assert read_labels(tmp_path / "mask.png", num_classes)[0].tolist() == values.tolist()
        else:
            with pytest.raises(ValueError, match=rf"labels \[{num_classes}\]"):
                read_labels(tmp_path / "mask.png", num_classes)


def test_a_mask_of_another_size_is_named(tmp_path):
    folder = broken(tmp_path)
    image, mask = voc_pairs(folder, "val")[1]
    Image.new("L", (7, 8)).save(mask)
    data = module(tmp_path)
    with pytest.raises(ValueError, match=rf"{mask.name} is 7 x 8 px, its image {image.name}"):
        data.test_set[(0, 1)]


def test_training_skips_unreadable_images_and_evaluation_does_not(tmp_path):
    folder = broken(tmp_path)
    data = module(tmp_path, batch_size=2)
    data.train_files[0].write_text("no image")
    sample = data.train_set[(0, 0)]
    assert sample.position == 1
    assert str(data.train_files[0]) in sample.unreadable[0]
    voc_files(folder, "val")[0].write_text("no image")
    with pytest.raises(ValueError, match="an evaluation needs every image"):
        data.test_set[(0, 0)]


def test_missing_masks_are_named(tmp_path):
    folder = broken(tmp_path)
    voc_pairs(folder, "train")[0][1].unlink()
    with pytest.raises(FileNotFoundError, match="1 of 6 masks"):
        voc_pairs(folder, "train")
    for mask in (folder / "SegmentationClass").iterdir():
        mask.unlink()
    (folder / "SegmentationClass").rmdir()
    with pytest.raises(FileNotFoundError, match="has no SegmentationClass: segmentation needs"):
        voc_pairs(folder, "train")
    with pytest.raises(ValueError, match="masks for train and trainaug only"):
        voc_pairs(folder, "all")


def test_trainaug_has_masks_of_its_own_and_no_validation_images(tmp_path):
    folder = broken(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"trainaug\.txt is missing"):
        VOC(str(tmp_path), "trainaug").pairs("trainaug")
    listing = folder / "ImageSets" / "Segmentation" / "trainaug.txt"
    names = [file.stem for file in voc_files(folder, "train")]
    lines = [f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png" for n in names[:3]] + names[3:5]
    listing.write_text("\n".join(lines))
    with pytest.raises(FileNotFoundError, match="SegmentationClassAug"):
        voc_pairs(folder, "trainaug")
    (folder / "SegmentationClassAug").mkdir()
    for name in names:
        mask = Image.open(folder / "SegmentationClass" / f"{name}.png")
        Image.fromarray(np.array(mask)).save(folder / "SegmentationClassAug" / f"{name}.png")
    pairs = voc_pairs(folder, "trainaug")
    assert [image.stem for image, _ in pairs] == names[:5]
    assert {mask.parent.name for _, mask in pairs} == {"SegmentationClassAug"}
    assert {mask.parent.name for _, mask in voc_pairs(folder, "val")} == {"SegmentationClass"}
    read_labels(pairs[0][1], 9)
    first = voc_files(folder, "val")[0].stem
    listing.write_text("\n".join([*names[:3], first]))
    with pytest.raises(ValueError, match=f"1 validation image, first: {first}"):
        voc_pairs(folder, "trainaug")


def test_what_the_host_reads_of_a_batch_stays_with_it():
    stored = {"pooled": torch.zeros(4).half(), "factors0": torch.tensor([2, 2, 1, 0, 1])}
    images, labels = torch.zeros(1, 3, 4, 4).byte(), torch.zeros(1, 4, 4).byte()
    given = SegmentationBatch(
        images, labels, torch.tensor([[4, 4, 4, 4]]), torch.tensor([7]), (), (stored,)
    )
    batch = move_data_to_device(given, torch.device("meta"))
    assert {each.device.type for each in (batch.images, batch.labels)} == {"meta"}
    assert batch.stored[0]["pooled"].device.type == "meta"
    assert batch.stored[0]["factors0"].tolist() == [2, 2, 1, 0, 1]
    assert (batch.indices.tolist(), batch.sizes.tolist()) == ([7], [[4, 4, 4, 4]])
