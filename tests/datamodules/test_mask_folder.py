"""Your own data: masks of any kind, lists of classes, and what is said where they do not fit."""

import unicodedata

import numpy as np
import pytest
import yaml
from PIL import Image

from datamodules.loading import Loading
from datamodules.mask_folder import MaskFolder
from datamodules.masks.check import Census, check_masks
from datamodules.masks.reading import read_labels
from datamodules.segmentation import SegmentationDataModule
from datamodules.transforms.segmentation import Standard
from main import main
from tests.conftest import files_at_most, summary
from tests.datamodules.own_masks import (
    COLOURS,
    HEX,
    bits,
    coloured,
    drawn,
    folder,
    grey,
    grey_in_rgb,
    reordered,
    times,
    with_alpha,
)
from utils.console import quiet_libraries
from utils.palette import has_background


@pytest.fixture(autouse=True)
def _console():
    quiet_libraries()


THREE = f"names: [background, crop, weed]\ncolours: {HEX}\n"
KINDS = [
    (grey, "names: [background, crop, weed]"),
    (times(7), "names: {0: background, 7: crop, 14: weed}"),
    (times(1, offset=1), "names: {1: background, 2: crop, 3: weed}"),
    (times(300, kind=np.uint16), "names: {0: background, 300: crop, 600: weed}"),
    (times(9, kind=np.float32), "names: {0: background, 9: crop, 18: weed}"),
    (grey, THREE),  # colours are for pictures
    (coloured, THREE),
    (with_alpha, THREE),
    (reordered, THREE),
    (lambda labels: coloured(labels).quantize(), THREE),
]


@pytest.mark.parametrize(("encode", "text"), KINDS)
def test_masks_of_every_kind_become_the_same_labels(tmp_path, encode, text):
    suffix = ".tif" if encode(drawn(0)).mode == "F" else ".png"
    source = MaskFolder(str(folder(tmp_path, encode, text, classes=3, suffix=suffix)))
    assert source.classes == ("background", "crop", "weed")
    for image, mask in source.pairs("train"):
        assert image.relative_to(tmp_path / "images").with_suffix("") == mask.relative_to(
            tmp_path / "masks"
        ).with_suffix("")
        labels = read_labels(mask, 3, source.meanings)
        assert np.array_equal(labels, drawn(int(mask.stem), 3))


def ramp(labels):
    """Grey levels beside a palette of them, as `convert("P")` leaves it."""
    return grey(labels).convert("P")


@pytest.mark.parametrize("encode", [grey, ramp])
def test_a_grey_mask_of_one_class_is_not_taken_for_the_class_that_is_black(tmp_path, encode):
    text = 'names: [crop, weed, soil]\ncolours: ["#00ff00", "#ff0000", "#000000"]\n'
    source = MaskFolder(str(folder(tmp_path, lambda labels: encode(0 * labels), text)))
    for part in ("train", "val"):
        for _, mask in source.pairs(part):
            assert (read_labels(mask, 3, source.meanings) == source.classes.index("crop")).all()


def test_black_and_white_masks_are_read_by_their_colours_where_255_is_no_class(tmp_path):
    text = 'names: [soil, crop]\ncolours: ["#000000", "#ffffff"]\n'
    source = MaskFolder(str(folder(tmp_path, times(255), text)))
    for _, mask in source.pairs("train"):
        assert np.array_equal(read_labels(mask, 2, source.meanings), drawn(int(mask.stem)))


@pytest.mark.parametrize("level", [0, 255])
def test_a_grey_mask_of_one_class_is_read_by_colours_that_are_all_grey(tmp_path, level):
    text = 'names: [cell, around]\ncolours: ["#ffffff", "#000000"]\n'
    source = MaskFolder(str(folder(tmp_path, lambda labels: grey(0 * labels + level), text)))
    for _, mask in source.pairs("train"):
        expected = source.classes.index("cell" if level else "around")
        assert (read_labels(mask, 2, source.meanings) == expected).all()


def test_what_counts_for_nothing_is_void_whatever_it_is_called_by(tmp_path):
    for entry in ("weed", "2", '"#0080ff"', "[weed]"):
        root = folder(tmp_path / entry.strip('"[]#'), coloured, THREE, classes=3)
        (root / "classes.yaml").write_text(f"{THREE}ignore: {entry}\n")
        source = MaskFolder(str(root))
        assert source.classes == ("background", "crop")
        labels = read_labels(source.pairs("train")[0][1], 2, source.meanings).numpy()
        assert np.array_equal(labels == 255, drawn(0, 3) == 2)


def test_a_background_of_another_name_comes_first(tmp_path):
    text = "names: [crop, soil, weed]\nbackground: soil\n"
    source = MaskFolder(str(folder(tmp_path, grey, text, classes=3)))
    assert source.classes == ("background", "crop", "weed")
    labels = read_labels(source.pairs("train")[0][1], 3, source.meanings).numpy()
    assert np.array_equal(labels, np.array([1, 0, 2])[drawn(0, 3)])


@pytest.mark.parametrize("name", ["Background", "BACKGROUND"])
def test_a_background_is_one_in_any_case(tmp_path, name):
    (tmp_path / "classes.yaml").write_text(f"names: [crop, {name}]")
    classes = MaskFolder(str(tmp_path)).classes
    assert classes == (name, "crop")  # as checkpoints have it
    assert has_background(classes)


def test_labels_are_painted_in_their_own_colours(tmp_path):
    source = MaskFolder(str(folder(tmp_path, coloured, THREE, classes=3)))
    assert np.array_equal(source.colours[:3], COLOURS)


@pytest.mark.parametrize(
    ("encode", "classes", "names", "colours"),
    [
        (grey, 3, ["background", "class 1", "class 2"], None),
        (bits, 2, ["background", "class 1"], None),
        (times(255), 2, {0: "background", 255: "class 255"}, None),
        (grey_in_rgb, 2, {0: "background", 255: "class 255"}, None),
        (times(5, 1), 3, {1: "class 1", 6: "class 6", 11: "class 11"}, None),
        (times(300, kind=np.uint16), 2, {0: "background", 300: "class 300"}, None),
        (coloured, 2, ["class 0", "class 1"], HEX[:2]),
        (lambda labels: reordered(labels) if labels[4, 2] else coloured(labels), 3, ..., HEX),
    ],
)
def test_without_a_list_one_is_written_that_works(
    tmp_path, capsys, encode, classes, names, colours
):
    root = folder(tmp_path, encode, classes=classes)
    with pytest.raises(FileNotFoundError, match=r"In 8 masks: .*written to .*classes\.yaml"):
        MaskFolder(str(root)).propose_classes()
    written = yaml.safe_load((root / "classes.yaml").read_text())
    assert names is ... or written["names"] == names
    assert set(written.get("colours", ())) == set(colours or ())
    assert sum(pixels > 0 for pixels in checked(root).pixels[:-1]) == classes


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_class_of_any_part_is_proposed(tmp_path, part):
    root = folder(tmp_path, grey, parts=("train", "val", "test"))
    grey(drawn(0, 3)).save(root / "masks" / part / "deep0/00.png")
    with pytest.raises(FileNotFoundError, match=r"In 12 masks: "):
        MaskFolder(str(root)).propose_classes()
    assert len(yaml.safe_load((root / "classes.yaml").read_text())["names"]) == 3


def blurred(labels):
    """As masks are that were resized with interpolation."""
    sides = labels.shape[1], labels.shape[0]
    return grey(labels * 255).resize((7, 5), Image.Resampling.BILINEAR).resize(sides)


def test_shades_between_classes_are_told_from_classes(tmp_path):
    root, doubts = folder(tmp_path, blurred), "So many are most often shades between classes"
    with pytest.raises(FileNotFoundError, match=rf"In 8 masks: .* start again\. {doubts}"):
        MaskFolder(str(root)).propose_classes()
    (root / "classes.yaml").write_text("names: {0: background, 255: crop}")
    with pytest.raises(ValueError, match=rf"^4 of 4 .* All masks hold: .* {doubts}.* as PNG\.$"):
        checked(root)
    names = {value: f"class {value}" for value in range(0, 256, 3)}
    (root / "classes.yaml").write_text(yaml.safe_dump({"names": names}))
    with pytest.raises(ValueError, match=r"or list it in `ignore`\.$"):  # many are expected
        checked(root)


def checked(root, split="train") -> Census:
    source = MaskFolder(str(root))
    pairs = source.pairs(split)
    images = [image for image, _ in pairs]
    return check_masks(source, pairs, "images", judged=images, cache=root / "cache")


def test_only_who_needs_classes_writes_a_list(tmp_path):
    root = folder(tmp_path, grey)
    with pytest.raises(FileNotFoundError, match="--task segmentation writes one"):
        _ = MaskFolder(str(root)).classes
    assert MaskFolder(str(root)).files("train")
    assert not (root / "classes.yaml").exists()


def test_a_list_that_cannot_be_written_is_shown(tmp_path):
    root = folder(tmp_path, grey)
    with files_at_most(10), pytest.raises(FileNotFoundError, match=r"It would be:\n# What"):
        MaskFolder(str(root)).propose_classes()


def test_the_written_list_knows_void(tmp_path):
    def with_border(labels):
        labels[3] = 255
        return Image.fromarray(labels)

    root = folder(tmp_path, with_border)
    with pytest.raises(FileNotFoundError):
        MaskFolder(str(root)).propose_classes()
    assert yaml.safe_load((root / "classes.yaml").read_text())["ignore"] == 255
    assert checked(root).pixels[-1] == 4 * 24


@pytest.mark.parametrize(
    ("encode", "text", "words"),
    [
        (times(255), "names: [background, cell]", r"names: \{0: background, 255: cell\}"),
        (grey_in_rgb, "names: [background, cell]", r"names: \{0: background, 255: cell\}"),
        (times(7), "names: [background, cell]", r"not name \(.* %.*\): 7\..*\{0: background, 7:"),
        (times(1, 1), "names: [a, b]", r"names: \{1: a, 2: b\}"),
        (times(300, kind=np.uint16), "names: [a, b]", r"\{0: a, 300: b\}"),
        (times(0), "names: [a, b, c]\nignore: a", "are void all over"),
    ],
)
def test_values_that_do_not_fit_are_answered_with_what_to_write(tmp_path, encode, text, words):
    root = folder(tmp_path, encode, text)
    with pytest.raises(ValueError, match=words):
        checked(root)


def test_one_class_too_many_may_be_none(tmp_path):
    root = folder(tmp_path, grey, "names: [crop, weed]", classes=3)
    with pytest.raises(ValueError, match=r"write .*names: \{1: crop, 2: weed\}.* `ignore: 0`"):
        checked(root)
    (root / "classes.yaml").write_text("names: {1: crop, 2: weed}\nignore: 0\n")
    assert checked(root).pixels[-1] == 4 * (20 * 24 - 2 * 8 * 6)


def test_colours_without_a_name_are_counted_and_the_first_file_is_named(tmp_path):
    root = folder(tmp_path, coloured, THREE)
    first, second = sorted((root / "masks" / "train").rglob("*.png"))[1:3]
    for file in (first, second):
        pixels = np.array(Image.open(file))
        pixels[:2] = [1, 2, 3]
        Image.fromarray(pixels).save(file)
    with pytest.raises(ValueError, match=r"^2 of 4 masks") as error:
        checked(root)
    said = str(error.value)
    assert said.index(str(first)) < said.index(str(second))
    assert "has 1 colour that classes.yaml does not have (10 % of its pixels): #010203." in said


def test_masks_in_colours_need_colours(tmp_path):
    root = folder(tmp_path, coloured, "names: [background, crop]")
    with pytest.raises(ValueError, match=r"gives none: add `colours`.*#282828 \(\d+ %\)"):
        checked(root)


def test_jpeg_is_no_format_of_masks(tmp_path):
    root = folder(tmp_path, coloured, THREE, suffix=".jpg")
    with pytest.raises(ValueError, match="JPEG changes the colours of masks"):
        checked(root)
    (root / "classes.yaml").unlink()
    with pytest.raises(ValueError, match="JPEG changes the colours of masks"):
        MaskFolder(str(root)).propose_classes()
    assert not (root / "classes.yaml").exists()


def test_masks_of_which_none_can_be_read_are_no_classes(tmp_path):
    root = folder(tmp_path, grey)
    for mask in (root / "masks").rglob("*.png"):
        mask.write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"None of the masks can be read, first: .*00\.png \(not a"
    ):
        MaskFolder(str(root)).propose_classes()
    assert not (root / "classes.yaml").exists()


def test_pictures_are_no_masks(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (20, 24, 3), np.uint8)
    root = folder(tmp_path, lambda _: Image.fromarray(noise))
    with pytest.raises(ValueError, match="more values or colours than classes can be"):
        MaskFolder(str(root)).propose_classes()


@pytest.mark.parametrize("inside", ["train", ""])
def test_without_val_a_share_is_set_apart_for_good(tmp_path, capsys, inside):
    def parts(source):
        return [[image.name for image, _ in source.pairs(part)] for part in ("train", "val")]

    names = "names: [background, crop]"
    root = folder(tmp_path, grey, names, parts=(inside,), count=40)
    train, val = parts(MaskFolder(str(root), val_fraction=0.25))
    said = capsys.readouterr().err
    assert f"has no val/: a hash of their names sets {len(val)} of 40 images apart" in said
    assert len(train) + len(val) == 40
    assert 4 <= len(val) <= 16
    root = folder(tmp_path, grey, names, parts=(inside,), count=60)
    more_train, more_val = parts(MaskFolder(str(root), val_fraction=0.25))
    assert set(train) < set(more_train)
    assert set(val) <= set(more_val)
    data = module(MaskFolder(str(root), val_fraction=0.25), 0.25)
    assert data.val_files  # held out by another hash


def test_of_few_images_one_is_set_apart(tmp_path):
    source = MaskFolder(str(folder(tmp_path, grey, parts=("train",), count=2)), val_fraction=0.01)
    assert [len(source.pairs(part)) for part in ("train", "val")] == [1, 1]


def module(source: MaskFolder, val_fraction: float = 0.0) -> SegmentationDataModule:
    data = SegmentationDataModule(source, Standard(32), 32, Loading(2), val_fraction)
    data.setup("fit")
    return data


def test_test_is_judged_and_val_chooses(tmp_path):
    root = folder(tmp_path, grey, "names: [a, b]", parts=("train", "val", "test"))
    data = module(MaskFolder(str(root)))
    inside = [
        {file.relative_to(root / "images").parts[0] for file in files}
        for files in (data.train_files, data.val_files, [pair[0] for pair in data.test_set.pairs])
    ]
    assert inside == [{"train"}, {"val"}, {"test"}]
    source = MaskFolder(str(root))
    sizes = {part: len(source.files(part)) for part in ("train", "val", "all_minus_val", "all")}
    assert sizes == {"train": 4, "val": 4, "all_minus_val": 8, "all": 12}
    (root / "masks" / "test").rename(root / "elsewhere")  # test images of a competition
    assert {pair[0].parts[-3] for pair in MaskFolder(str(root)).pairs("val")} == {"val"}


@pytest.mark.parametrize(
    "parts", [("train", "valid"), ("training", "validation"), ("Train", "Val"), ("train", "test")]
)
def test_parts_by_other_names_are_not_mixed(tmp_path, parts):
    source = MaskFolder(str(folder(tmp_path, grey, "names: [a, b]", parts)))
    for split, inside in zip(("train", "val"), parts, strict=True):
        pairs = source.pairs(split)
        assert len(pairs) == 4
        assert {file.relative_to(tmp_path).parts[1] for pair in pairs for file in pair} == {inside}
    assert source.held_out() is None


def test_valid_chooses_where_test_judges(tmp_path):
    root = folder(tmp_path, grey, "names: [a, b]", ("train", "valid", "test"))
    source = MaskFolder(str(root))
    assert {image.parts[-3] for image, _ in source.held_out() or ()} == {"valid"}
    assert {image.parts[-3] for image, _ in source.pairs("val")} == {"test"}


@pytest.mark.parametrize("plain", [False, True])
def test_labels_in_a_pgm_are_what_the_file_says(tmp_path, plain):
    """Not stretched to white by the largest value that its header names, one a mask."""
    (tmp_path / "classes.yaml").write_text("names: {0: a, 1: b, 2: c, 300: d}")
    meanings = MaskFolder(str(tmp_path)).meanings
    for largest in (1, 2, 254, 255, 300, 65535):
        values = np.array([[0, 1, 2, 300]])
        values[values > largest] = 1
        stored = values.astype(">u2" if largest > 255 else np.uint8).tobytes()
        spelt = " ".join(map(str, values.ravel().tolist())).encode()
        file = tmp_path / f"{largest}.pgm"
        file.write_bytes(
            b"P%d 4 1 %d\n" % (2 if plain else 5, largest) + (spelt if plain else stored)
        )
        labels = read_labels(file, 4, meanings).ravel().tolist()
        assert labels == [{0: 0, 1: 1, 2: 2, 300: 3}[value] for value in values.ravel().tolist()]


def test_negative_values_count_for_nothing(tmp_path):
    with_void = times(1, offset=-1, kind=np.int32)  # -1, 0 and 1
    root = folder(tmp_path, with_void, classes=3, suffix=".tif")
    with pytest.raises(FileNotFoundError, match=r"no classes\.yaml"):
        MaskFolder(str(root)).propose_classes()
    written = yaml.safe_load((root / "classes.yaml").read_text())
    assert (written["names"], written["ignore"]) == (["background", "class 1"], -1)
    mask = MaskFolder(str(root)).pairs("train")[0][1]
    expected = drawn(0, 3).astype(int) - 1
    expected[expected < 0] = 255
    labels = read_labels(mask, 2, MaskFolder(str(root)).meanings)
    assert np.array_equal(labels.numpy(), expected)

    (root / "classes.yaml").write_text("names: [ground, weed]")
    with pytest.raises(ValueError, match=r"does not name.*: `ignore: \[-1\]`, as no class is neg"):
        checked(root)
    values = np.array([-1, 3, 4], np.int32)
    masks = {"classes": 3, "suffix": ".tif"}
    root = folder(tmp_path / "b", lambda labels: Image.fromarray(values[labels]), **masks)
    (root / "classes.yaml").write_text("names: [ground, weed]")
    with pytest.raises(ValueError, match=r"`names: \{3: ground, 4: weed\}` and `ignore: \[-1\]`$"):
        checked(root)


def test_what_is_wrong_with_a_file_is_not_advised_to_be_named(tmp_path):
    root = folder(tmp_path, grey, "names: [a, b]")
    grey(drawn(0)[1:]).save(root / "masks/train/deep0/00.png")
    with pytest.raises(ValueError, match=r"they do not belong together\.$"):
        checked(root)
    for mask in (root / "masks").rglob("*.png"):
        mask.write_bytes(b"")
    with pytest.raises(ValueError, match=r"^4 of 4 .*cannot be read\.$"):
        checked(root)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 0.5])
@pytest.mark.filterwarnings("error")
def test_numbers_that_are_not_whole_are_no_labels(tmp_path, value):
    root = folder(tmp_path, times(1, kind=np.float32), "names: [a, b]", suffix=".tif")
    assert sum(checked(root).pixels) == 4 * drawn(0).size
    mask = drawn(0).astype(np.float32)
    mask[0, 0] = value
    Image.fromarray(mask).save(root / "masks/train/deep0/00.tif")
    with pytest.raises(ValueError, match=r"00\.tif has numbers that are not whole"):
        checked(root)


def test_an_accent_is_one_name_however_it_is_written(tmp_path):
    root = folder(tmp_path, grey, "names: [a, b]")
    for kind, form in (("images", "NFC"), ("masks", "NFD")):
        for file in sorted((root / kind / "train").rglob("00.*")):
            file.rename(file.with_stem(unicodedata.normalize(form, "café")))
    pairs = MaskFolder(str(root)).pairs("train")
    named = [(image.stem, mask.stem) for image, mask in pairs if image.stem.startswith("caf")]
    assert named == [("caf\u00e9", "cafe\u0301")]


def test_a_part_of_images_or_masks_alone_is_said(tmp_path, capsys):
    root = folder(tmp_path, grey, "names: [a, b]")
    MaskFolder(str(root)).pairs("val")
    assert "left out" not in capsys.readouterr().err
    (root / "images/val").rename(root / "images/Test")
    assert len(MaskFolder(str(root)).pairs("train")) == 3  # one is set apart
    said = capsys.readouterr().err
    for alone, lacking in (("images/Test", "masks/Test"), ("masks/val", "images/val")):
        assert f"warning: {root / alone} is left out, as there is no {root / lacking}." in said


def rename(root, old, new):
    for file in root.rglob(old):
        file.rename(file.with_name(new.format(file.stem, file.suffix)))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda root: (root / "masks/train/deep0/00.png").unlink(),
            r"1 of 4 images in .* have no mask .*first: deep0/00\.webp",
        ),
        (
            lambda root: (root / "images/train/deep1/03.JPG").unlink(),
            r"1 of 4 masks in .* have no image .*first: deep1/03\.png",
        ),
        (
            lambda root: rename(root / "masks/train", "*.png", "{}_mask{}"),
            r"4 of 4 images .*What is there is called as deep0/00_mask\.png",
        ),
        (
            lambda root: grey(drawn(0)).save(root / "masks/train/deep0/02.bmp"),
            r"There are 2 masks of one name, .*deep0/02\.",
        ),
        (
            lambda root: grey(drawn(0)).save(root / "images/train/deep0/02.png"),
            r"There are 2 images of one name",
        ),
        (lambda root: (root / "masks").rename(root / "labels"), "There is no folder .*masks"),
        (lambda root: (root / "images").rename(root / "x"), "There is no folder .*images"),
        (lambda root: (root / "images/train").rename(root / "x"), "no .*images/train: expected"),
    ],
)
def test_folders_that_do_not_fit_are_explained(tmp_path, damage, words):
    root = folder(tmp_path, grey, "names: [a, b]")
    MaskFolder(str(root)).pairs("train")
    damage(root)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        MaskFolder(str(root)).pairs("train")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("names: [a, b]\ncolors: [red, blue]", "no entry colors. Did you mean colours?"),
        ("names: [a, b]\nnames: [c, d]", "names stands in line 1 too"),
        ("nmes: [a, b]", "expected `names:`"),
        ("", "expected `names:`"),
        ("names: [a, b", "line 1"),
        ("names: a", "names is 'a', expected a list"),
        ("names: [a]", "1 of 1 names count, expected at least two"),
        ("names: [a, b]\nignore: b", "1 of 2 names count, expected at least two"),
        ("names: [a, a]", "a is the name of two classes"),
        ("names: [yes, no]", 'write it in quotation marks, "no"'),
        ("names: [a, [b]]", r"\['b'\] is no name"),
        ("names: {a: 0, b: 1}", "names has 'a' where the value"),
        ("names: {-1: a, 1: b}", "names has -1 where the value"),
        ("names: [a, b]\ncolours: [red]", "1 colour, expected 2"),
        ("names: [a, b]\ncolours: [red, rde]", "the colour of b is 'rde', expected"),
        ("names: [a, b]\ncolours: [[0, 0, 300], red]", r"the colour of a is \[0, 0, 300\]"),
        ("names: [a, b]\ncolours: [#ff0000, #00ff00]", "line 2: .* a bare # begins a comment"),
        ("names: [a, b]\ncolours: {a: #ff0000}", "line 2: .* a bare # begins a comment"),
        ("names: [a, b]\ncolours: {\n  a: #f00,\n  b: #0f0\n}", "a bare # begins a comment"),
        (
            "names: [a, b]\ncolours:\n  a: #ff0000\n  b: red",
            "of a is None, .* a bare # begins a comment",
        ),
        ("names: [a, b]\ncolours:\n  - #f00\n  - red", "a bare # begins a comment"),
        ("names: [a, gr\udcfcn]", "is no text in UTF-8, save it as such"),
        ("names: [a, b]\nignore: #ff0000", "ignore is empty: .* a bare # begins a comment"),
        ("names: [a, b]\ncolours:", r"colours is empty: fill it in, or leave it out\.$"),
        ("names: [a, b]\ncolours: [(9, 0, 0), (0, 9, 0)]", r"6 colours, .* or \[255, 0, 0\]"),
        ("names: [a, b]\ncolours: [red, '#f00']", "a and b have the same colour, #ff0000"),
        ("names: [a, bee]\ncolours: {a: red, be: blue}", "has be, .* Did you mean bee?"),
        ("names: [a, b]\ncolours: {a: red}", "b has no colour"),
        ("names: [a, soil]\nbackground: sol", "background is sol, .* Did you mean soil?"),
        ("names: [a, background]\nbackground: a", "another class is called background"),
        (
            "names: [a, b, c]\ncolours: [black, red, blue]\nignore: [0, 255, 0]",
            r"ignore is \[0, 255, 0\], which is a colour or three values",
        ),
        ("names: [a, b, c]\nignore: d", "an entry of ignore .* is 'd', expected"),
    ],
)
def test_a_list_that_cannot_be_understood_is_explained(tmp_path, text, words):
    (tmp_path / "classes.yaml").write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=rf"^{tmp_path}/classes\.yaml.*{words}"):
        _ = MaskFolder(str(tmp_path)).classes


@pytest.mark.parametrize("ignored", [False, True])
def test_a_class_that_is_called_void_is_said_to_be_one(tmp_path, recwarn, ignored):
    text = "names: {0: soil, 1: crop, 255: Void}\n" + "ignore: Void" * ignored
    (tmp_path / "classes.yaml").write_text(text)
    classes = MaskFolder(str(tmp_path)).classes
    assert ("Void" in classes, len(recwarn)) == (not ignored, not ignored)
    assert all("write `ignore: Void`" in str(warning.message) for warning in recwarn)


def test_three_values_that_are_no_colour_are_ignored(tmp_path):
    text = "names: [a, b, c]\ncolours: [black, red, blue]\nignore: [-1, 0, 300]"
    (tmp_path / "classes.yaml").write_text(text)
    assert MaskFolder(str(tmp_path)).classes == ("b", "c")


def test_your_own_data_from_nothing_to_labels(train, tmp_path, capsys):
    root = folder(tmp_path / "data", coloured, count=16)
    settings = {
        "task": "segmentation",
        "data__name": "mask_folder",
        "data__root": root,
        "data__val_fraction": 0.3,
        "trainer__max_epochs": 1,
    }
    assert train("run", **settings)[0] == 2
    assert "In 32 masks: #282828 (9" in capsys.readouterr().err
    text = (root / "classes.yaml").read_text()
    (root / "classes.yaml").write_text(text.replace("class 0", "background"))
    code, run = train("run", **settings)
    assert code == 0
    assert {"test/iou/background", "test/iou/class 1"} <= summary(run).keys()
    place = ["--run.dir", str(run.parent), "--images", str(root / "images" / "val")]
    main(["--predict", "run", *place])
    labels = next(run.glob("predictions/val/labels/deep0/00.webp.png"))
    colours = Image.open(labels).convert("RGB").getcolors()
    assert {colour for _, colour in colours or ()} <= set(map(tuple, COLOURS[:2].tolist()))


def test_a_run_labels_images_where_its_data_is_not(train, tmp_path, capsys):
    root = folder(tmp_path / "data", grey, "names: [background, crop]", count=16)
    settings = {"task": "segmentation", "data__name": "mask_folder", "data__root": root}
    assert train("run", **settings, trainer__max_steps=1)[0] == 0
    images = root.rename(tmp_path / "elsewhere") / "images" / "val"
    place = ["--run.dir", str(tmp_path / "runs")]
    capsys.readouterr()
    assert main(["--predict", "run", "--images", str(images), *place]) == 0
    said = capsys.readouterr()
    assert "16 images labelled" in said.out
    assert f"There is no {root}: the classes are those of the checkpoint" in said.out + said.err
    header = next(tmp_path.glob("runs/run/predictions/val/class_shares.csv")).read_text()
    assert header.startswith("image,background,crop\n")
    assert main(["--evaluate", "run", *place]) == 2
    assert f"There is no folder {root}" in capsys.readouterr().err
    with files_at_most(200):  # its summary cannot be written
        assert main(["--evaluate", "run", *place, "--data.root", str(images.parents[1])]) == 2
    said = capsys.readouterr()
    assert "evaluate/voc12_standard/data.root elsewhere/miou" in said.out
    assert "summary.json cannot be written" in said.err


def test_classes_in_another_order_are_not_those_of_the_run(train, tmp_path, capsys):
    names = "names: [background, crop]"
    root = folder(tmp_path / "data", grey, names, count=16)
    settings = {"task": "segmentation", "data__name": "mask_folder", "data__root": root}
    assert train("run", **settings, trainer__max_steps=1)[0] == 0
    (root / "classes.yaml").write_text("names: [crop, field]")
    capsys.readouterr()
    place = ["--run.dir", str(tmp_path / "runs")]
    assert main(["--evaluate", "run", *place]) == 2
    assert "label 0 is background there and crop in the data set" in capsys.readouterr().err
    (root / "classes.yaml").write_text(names)
    mask = sorted((root / "masks" / "val").rglob("*.png"))[3]
    grey(np.full((7, 8), 1, np.uint8)).save(mask)
    assert main(["--evaluate", "run", *place]) == 2
    assert f"1 of 16 masks or images cannot be used (test images): {mask} is 8 x 7 px" in (
        capsys.readouterr().err
    )


def test_weights_that_are_not_there_are_named_before_masks_are_read(train, tmp_path, capsys):
    root = folder(tmp_path / "data", grey, "names: [background, crop]", classes=3)
    settings = {"task": "segmentation", "data__name": "mask_folder", "data__root": root}
    settings["data__batch_size"] = 2
    for option in ("backbone.weights", "segmentation.head_weights"):
        missing = str(tmp_path / "missing.pth")
        assert train("bad", f"--{option}", missing, **settings)[0] == 2
        assert f"There is no weight file {missing}" in capsys.readouterr().err.replace("\n", " ")
    assert train("bad", **settings)[0] == 2
    assert "masks" in capsys.readouterr().err


def test_classes_are_weighed_in_training_alone(train, tmp_path, capsys):
    root = folder(tmp_path / "data", grey, "names: [background, crop]", count=16)
    settings = {"task": "segmentation", "data__name": "mask_folder", "data__root": root}
    settings["trainer__max_steps"] = 1
    weights = {"segmentation__class_weights": "inverse_frequency"}
    losses = {}
    for name, more in {"plain": {}, "weighed": weights}.items():
        code, run = train(name, **settings, **more)
        assert code == 0
        losses[name] = summary(run)["train/loss"]
    share = 6 * 8 / (20 * 24)
    expected = f"class weights: crop {0.5 / share:.3g}, background {0.5 / (1 - share):.3g}"
    assert expected in capsys.readouterr().err
    assert losses["plain"] != losses["weighed"]
    listed = {"segmentation__class_weights": "listed"}
    for given in ((), (1.0,), (0.0, 0.0)):
        more = {"segmentation__listed_class_weights": given} if given else {}
        assert train("bad", **settings, **listed, **more)[0] == 2
        error = capsys.readouterr().err
        assert "expected one for each of 2 classes, not all of them 0: background, crop." in error
        assert "--segmentation.listed_class_weights:" in error or given
