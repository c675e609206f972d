"""Images are read as they are displayed, in 8 bits, within bounds; masks go with them."""

import ast
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngImageFile, PngInfo

from datamodules import reading
from datamodules.base import read_square
from datamodules.image_files import ImageFiles
from datamodules.labelled import LabelledFiles
from datamodules.masked_squares import MaskedSquares
from datamodules.masks.reading import Fit, read_pair
from datamodules.reading import (
    UnreadableImageError,
    opened,
    read_picture,
    read_rgb,
    shorter_side,
)
from datamodules.seeding import seeded
from datamodules.shapes import Shapes
from datamodules.transforms.barlow_twins import BarlowTwinsViews
from datamodules.transforms.dino import MultiCropViews
from datamodules.transforms.segmentation import FixedViews, Standard, TrainingCrop
from utils.console import quiet_libraries

ORIENTATIONS = range(1, 9)
ROOT = Path(__file__).parents[2]


def picture(width: int = 48, height: int = 32) -> Image.Image:
    """Grey levels that differ in all eight orientations, smooth enough for JPEG."""
    rows, columns = np.mgrid[:height, :width]
    grey = (4 * rows + columns).astype(np.uint8)
    return Image.fromarray(np.stack([grey, grey, 255 - grey], -1))


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    return tags


def stored(file: Path, orientation: int, image: Image.Image | None = None) -> Path:
    (image or picture()).save(file, exif=exif(orientation))
    return file


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_an_image_is_read_as_it_is_displayed(tmp_path, suffix, mode, orientation):
    file = stored(tmp_path / f"a.{suffix}", orientation, picture().convert(mode))
    image, size, found = read_picture(file)
    with Image.open(stored(tmp_path / f"plain.{suffix}", 1, picture().convert(mode))) as opened:
        plain = opened.convert("RGB")
    plain.getexif()[ExifTags.Base.Orientation] = orientation
    expected = ImageOps.exif_transpose(plain)
    assert np.array_equal(np.array(image), np.array(expected))
    assert size == image.size == ((32, 48) if orientation >= 5 else (48, 32))
    assert found == orientation
    assert shorter_side(file) == 32


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_all_that_reads_images_sees_them_as_displayed(tmp_path, orientation):
    phone = stored(tmp_path / "phone.png", orientation, picture(40, 40))
    upright = tmp_path / "upright.png"
    read_rgb(phone).save(upright)
    for read in (
        lambda file: read_square(file, 24),
        lambda file: LabelledFiles((file,), (0,), ("a",)).read(24)[0],
        lambda file: ImageFiles([file], BarlowTwinsViews(24), seed=1)[(0, 0)].views[0],
    ):
        assert np.array_equal(read(phone), read(upright))


def test_damaged_exif_costs_no_image(tmp_path):
    file = tmp_path / "a.jpg"
    for content in (
        b"Exif\0\0nonsense",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0",
        exif(9).tobytes(),
    ):
        picture().save(file, exif=content)
        assert read_picture(file)[1:] == ((48, 32), 1)


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_becomes_8_bit_of_the_same_brightness(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    read = np.array(read_rgb(tmp_path / f"a.{suffix}"))
    assert read[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]
    assert (read == read[..., :1]).all()


def test_16_bit_grey_of_the_other_byte_order(tmp_path):
    values = np.linspace(0, 65535, 64).astype(np.uint16)
    big = Image.frombytes("I;16B", (8, 8), values.astype(">u2").tobytes())
    big.save(tmp_path / "big.tif")
    Image.fromarray(values.reshape(8, 8)).save(tmp_path / "little.tif")
    first, second = (np.array(read_rgb(tmp_path / f"{n}.tif")) for n in ("big", "little"))
    assert np.array_equal(first, second)


def grey_tiff(file: Path, values: np.ndarray, bits: int, photometric: int) -> Path:
    """An uncompressed TIFF 6.0 of one strip; its rows are of whole bytes."""
    spelt = "".join(f"{value:0{bits}b}" for value in values.ravel().tolist())
    data = int(spelt, 2).to_bytes(len(spelt) // 8)
    if bits == 16:
        data = values.astype("<u2").tobytes()
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric}
    tags |= {273: 10 + 12 * 9 + 4, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = b"II*\0" + struct.pack("<IH", 8, len(tags))
    file.write_bytes(start + entries + struct.pack("<I", 0) + data)
    return file


@pytest.mark.parametrize("white", [255, 1000, 4095, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_a_pgm_is_as_bright_as_its_header_says(tmp_path, white, plain):
    values = np.linspace(0, white, 64).round().astype(np.int64).reshape(8, 8)
    file = tmp_path / "a.pgm"
    stored = values.astype(">u2" if white > 255 else np.uint8).tobytes()
    content = " ".join(map(str, values.ravel().tolist())).encode() if plain else stored
    file.write_bytes(b"P%d 8 8 %d\n" % (2 if plain else 5, white) + content)
    read = np.array(read_rgb(file))[..., 0]
    assert np.abs(read - values * 255 / white).max() <= 0.5 + 0.01  # Pillow rounds before


# Photometric 0: white is zero; 12 bits of it Pillow does not read.
@pytest.mark.parametrize(("bits", "photometric"), [(8, 0), (8, 1), (12, 1), (16, 0), (16, 1)])
def test_a_grey_tiff_is_as_bright_as_its_header_says(tmp_path, bits, photometric):
    white = 2**bits - 1
    values = np.linspace(0, white, 64).round().astype(np.int64).reshape(8, 8)
    read = np.array(read_rgb(grey_tiff(tmp_path / "a.tif", values, bits, photometric)))[..., 0]
    expected = values * 255 / white
    assert np.abs(read - (expected if photometric else 255 - expected)).max() <= 0.5 + 1e-4


@pytest.mark.parametrize(
    ("kind", "words"), [(np.float32, "floating-point"), (np.int32, "32-bit integers")]
)
def test_pixels_without_a_white_are_refused_in_words(tmp_path, kind, words):
    file = tmp_path / "a.tif"
    Image.fromarray(np.arange(16, dtype=kind).reshape(4, 4)).save(file)
    with pytest.raises(UnreadableImageError, match=rf"a\.tif \(its pixels are .*{words}.* 16 bits"):
        read_rgb(file)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(tmp_path, mode):
    file = tmp_path / "a.tif"
    picture().convert(mode).save(file)
    with Image.open(file) as opened:
        assert opened.mode == mode
        assert np.array_equal(np.array(read_rgb(file)), np.array(opened.convert("RGB")))


# --- bounds -------------------------------------------------------------------------------------


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and nothing else."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return PNG_SIGNATURE + header + struct.pack(">I", 0) + b"IDAT" + bytes(4)


def test_a_thread_of_pixels_is_an_unreadable_image(tmp_path):
    for size in ((100, 1), (1, 100), (300, 3)):
        Image.new("RGB", size, (9, 8, 7)).save(tmp_path / "long.png")
        assert read_picture(tmp_path / "long.png").size == size
        square = read_square(tmp_path / "long.png", 16)
        assert (square == torch.tensor([9, 8, 7])[:, None, None]).all()
    for size, words in (((301, 3), "301 x 3"), ((1, 101), "1 x 101"), ((60_000, 1), "60000 x 1")):
        Image.new("RGB", size).save(tmp_path / "long.png")
        with pytest.raises(UnreadableImageError, match=rf"long\.png \({words} px, more than 100 "):
            read_picture(tmp_path / "long.png")
        assert read_square(tmp_path / "long.png", 16) is None


def test_a_bomb_is_an_unreadable_image(tmp_path, image_folder):
    file = image_folder / "bomb.png"
    file.write_bytes(png_header(30_000, 30_000))
    with pytest.raises(UnreadableImageError, match=r"bomb\.png \(30000 x 30000 px are more than"):
        read_rgb(file)
    files = [file, *image_folder.glob("deep/*.png")]
    assert "30000 x 30000" in ImageFiles(files, BarlowTwinsViews(16), 0)[(0, 0)].unreadable[0]


def test_a_bomb_is_refused_before_its_pixels_are_decoded(tmp_path, monkeypatch):
    picture().save(tmp_path / "bomb.png")
    monkeypatch.setattr(reading, "MAX_PIXELS", 48 * 32 // 4 - 1)
    decoded = []
    monkeypatch.setattr(PngImageFile, "load", lambda image: decoded.append(image))
    with pytest.raises(UnreadableImageError, match="48 x 32 px are more than"):
        read_rgb(tmp_path / "bomb.png")
    assert not decoded


@pytest.mark.parametrize("tags", [None, exif(6)])
def test_a_png_with_a_changed_byte_is_unreadable(tmp_path, tags):
    file = tmp_path / "a.png"
    picture().save(file, exif=tags)
    content = bytearray(file.read_bytes())
    content[content.index(b"IDAT") + 40] ^= 4
    file.write_bytes(content)
    with pytest.raises(UnreadableImageError, match="broken data stream"):
        read_rgb(file)


@pytest.mark.parametrize(
    "damage", [b"", b"II*\0", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0"]
)
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_whatever_is_wrong_is_one_kind_of_error(tmp_path, suffix, damage):
    picture().save(tmp_path / f"whole.{suffix}")
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    for content in (damage, damage + whole[len(damage) :][: len(whole) // 2]):
        file = tmp_path / f"broken.{suffix}"
        file.write_bytes(content)
        with pytest.raises(UnreadableImageError, match=rf"^\S+broken\.{suffix} \(.+\)$"):
            np.array(read_rgb(file))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("suffix", "factor"), [("jpg", 2), ("jpg", 4), ("png", 2), ("tif", 2)])
def test_an_over_large_image_is_reduced(tmp_path, monkeypatch, suffix, factor, orientation):
    width, height = 481, 322
    columns = np.linspace(0, 255, width)[None].repeat(height, 0).astype(np.uint8)
    file = stored(tmp_path / f"a.{suffix}", orientation, Image.fromarray(columns))
    whole = read_rgb(file)
    monkeypatch.setattr(reading, "MAX_PIXELS", width * height // factor**2 + 1)
    image, size, _ = read_picture(file)
    assert size == whole.size == ((height, width) if orientation == 6 else (width, height))
    assert image.size == tuple(-(-side // factor) for side in size)
    difference = np.array(image.resize(size)).astype(int) - np.array(whole)
    assert np.abs(difference).mean() < 2
    monkeypatch.setattr(reading, "MAX_PIXELS", width * height // (4 * factor**2))
    if factor == (4 if suffix == "jpg" else 2):
        with pytest.raises(UnreadableImageError, match=r"\d x \d+ px are more than"):
            read_picture(file)


def test_a_damaged_jpeg_is_refused_and_a_flaw_is_not_printed(tmp_path, capfd):
    file = tmp_path / "a.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(file)
    whole, content = read_rgb(file), file.read_bytes()
    file.write_bytes(content[:-2] + bytes(239) + content[-2:])  # between the pixels and the end
    assert np.array_equal(read_rgb(file), whole)
    half = len(content) // 2
    file.write_bytes(content[:half] + b"\xff" * 1000 + content[half + 1000 :])
    with pytest.raises(UnreadableImageError, match="broken data stream"):
        read_rgb(file)
    assert capfd.readouterr() == ("", "")


def test_a_jpeg_is_reduced_while_it_is_decoded(tmp_path, monkeypatch):
    # By libjpeg, from 8 x 8 coefficients: means of 2 x 2 decoded pixels would differ.
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    file = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(file, quality=30)
    whole = read_rgb(file)
    monkeypatch.setattr(reading, "MAX_PIXELS", 64 * 64 // 4)
    assert not np.array_equal(np.array(read_rgb(file)), np.array(whole.reduce(2)))


def photograph(folder: Path, orientation: int = 1, suffix: str = "jpg") -> Path:
    """800 x 600 px, as cameras see: little detail in a few pixels."""
    rows, columns = np.mgrid[:600, :800]
    waves = [np.sin(rows / 10), np.sin(columns / 12), np.sin((rows - columns) / 20)]
    pixels = np.stack([127 + 80 * wave for wave in waves], -1).astype(np.uint8)
    return stored(folder / f"photograph.{suffix}", orientation, Image.fromarray(pixels))


@pytest.mark.parametrize(
    ("scale", "factor"), [(1.0, 1), (0.26, 1), (0.25, 2), (0.1, 4), (0.01, 8), (3.0, 1)]
)
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_jpeg_is_decoded_no_larger_than_twice_what_is_needed(
    tmp_path, suffix, orientation, scale, factor
):
    file = photograph(tmp_path, orientation, suffix)
    whole = read_rgb(file)
    with opened(file) as found:
        assert found.size == whole.size
        image, size, turn = found.decode(scale)
    assert (size, turn) == (whole.size, orientation)
    divided = factor if suffix == "jpg" else 1
    assert image.size == tuple(-(-side // divided) for side in size)
    small, expected = (np.array(each.resize((50, 50)), int) for each in (image, whole))
    assert np.abs(small - expected).mean() < 2


@pytest.mark.parametrize("orientation", [1, 6])
def test_views_of_a_photograph_are_those_of_its_whole(tmp_path, orientation):
    file = photograph(tmp_path, orientation)
    whole = np.array(read_rgb(file))
    data = ImageFiles([file], MultiCropViews(48, 16, 2, (0.4, 1.0), (0.05, 0.4)), seed=3)
    differences = []
    for epoch in range(20):
        with seeded(3, epoch, 0):
            drawn = data.views.draw(whole.shape[1::-1])
        expected = [view.cut(whole, whole.shape[1::-1]) for view in drawn]
        differences += [
            (view.int() - other).abs().float().mean().item()
            for view, other in zip(data[(epoch, 0)].views, expected, strict=True)
        ]
    # Grey levels; the box is rounded to decoded pixels, at most a quarter of a view's.
    assert 0 < np.mean(differences) < 4


def test_a_square_of_a_photograph_is_that_of_its_whole(tmp_path):
    file = photograph(tmp_path)
    square = read_square(file, 64)
    side = read_rgb(file).resize((85, 64), Image.Resampling.BICUBIC)
    expected = np.array(side).transpose(2, 0, 1)[:, :, 10:74]
    assert square.shape == (3, 64, 64)
    assert np.abs(square.numpy().astype(int) - expected).mean() < 2


def test_an_error_beside_an_opened_image_is_not_the_images(tmp_path):
    with pytest.raises(ZeroDivisionError), opened(photograph(tmp_path)):
        _ = 1 / 0


# --- masks --------------------------------------------------------------------------------------


def pair(folder: Path, orientation: int, as_stored: bool, size=(48, 32)) -> tuple[Path, Path]:
    """An image whose mask is 1 where it is bright."""
    image, mask = folder / "image.png", folder / "mask.png"
    stored(image, orientation, picture(*size))
    shown = picture(*size) if as_stored else read_rgb(image)
    bright = (np.array(shown)[..., 0] > 90).astype(np.uint8)
    Image.fromarray(bright).save(mask)
    return image, mask


@pytest.mark.parametrize("as_stored", [False, True])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_mask_stays_on_its_image(tmp_path, orientation, as_stored):
    image, labels, fit = read_pair(*pair(tmp_path, orientation, as_stored), 2)
    told = orientation in (1, 5, 6, 7, 8)  # by the sizes; else a mask is as displayed
    if told or not as_stored:
        assert np.array_equal(labels.numpy(), np.array(image)[..., 0] > 90)
    if orientation == 1:
        assert fit is Fit.DISPLAYED
    elif told:
        assert fit is (Fit.STORED if as_stored else Fit.DISPLAYED)
    else:
        assert fit is Fit.EITHER


def test_a_square_tells_nothing(tmp_path):
    assert read_pair(*pair(tmp_path, 6, False, (32, 32)), 2).fit is Fit.EITHER


def test_a_mask_with_an_orientation_of_its_own(tmp_path):
    image, mask = tmp_path / "image.png", tmp_path / "mask.png"
    stored(image, 8)
    Image.fromarray((np.array(picture())[..., 0] > 90).astype(np.uint8)).save(mask, exif=exif(8))
    read, labels, fit = read_pair(image, mask, 2)
    assert np.array_equal(labels.numpy(), np.array(read)[..., 0] > 90)
    assert fit is Fit.DISPLAYED


def test_a_mask_of_an_image_that_was_reduced(tmp_path, monkeypatch):
    image, mask = pair(tmp_path, 6, True, (96, 64))
    monkeypatch.setattr(reading, "MAX_PIXELS", 96 * 64 // 4)
    read, labels, _ = read_pair(image, mask, 2)
    assert (read.size, labels.shape) == ((32, 48), (96, 64))
    for prepare in (TrainingCrop(32, Standard(32)), FixedViews(32, Standard(32), [1.0], 1).view(0)):
        crop, cut = prepare(read, labels)
        assert crop.shape[1:] == cut.shape
    seen, judged = Standard(32)(read, labels)
    assert (seen.shape[1:], judged.shape) == ((48, 32), (96, 64))
    ((square, truth),) = MaskedSquares(Shapes("."), [(image, mask)], 64)
    agree = (square[0].numpy() > 90) == truth.numpy()
    assert agree.mean() > 0.97


def test_images_are_opened_in_one_place():
    opening = {
        file.relative_to(ROOT).as_posix()
        for folder in ("agents", "callbacks", "datamodules", "models", "utils")
        for file in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "Image.open"
    }
    figures = {"utils/page.py"}  # of a run's own folder
    assert opening == {"datamodules/reading.py"} | figures


def test_transparency_of_a_palette_is_nothing_to_be_told(tmp_path):
    file = tmp_path / "image.png"
    Image.new("RGB", (8, 8), "red").quantize(4).save(file, transparency=bytes([0, 255, 255, 255]))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        quiet_libraries()
        assert read_rgb(file).getpixel((0, 0)) == (255, 0, 0)
    assert not seen


def test_long_texts_of_a_png_leave_it_readable(tmp_path):
    texts = PngInfo()
    texts.add_text("workflow", "node " * 2**18, zip=True)
    picture().save(tmp_path / "image.png", pnginfo=texts, icc_profile=bytes(2**21))
    assert np.array_equal(read_rgb(tmp_path / "image.png"), picture())


@pytest.mark.parametrize("bits", [2, 4])
def test_masks_of_few_bits_hold_their_labels(tmp_path, bits):
    """As pypng and GDAL write them; Pillow writes 1 and 8 bits of grey alone."""
    labels = np.arange(2**bits, dtype=np.uint8).reshape(-1, 4)
    shown = np.unpackbits(labels[..., None], axis=-1)[..., -bits:]
    packed = np.packbits(shown.reshape(len(labels), -1), axis=1)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", 4, len(labels), bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    file = tmp_path / "mask.png"
    file.write_bytes(PNG_SIGNATURE + b"".join(png_chunk(*chunk) for chunk in chunks))
    assert np.array_equal(np.asarray(reading.read_values(file)), labels)
    assert np.asarray(read_rgb(file)).max() == 255  # of an image they are shades


def colours_of_16_bits(file, values):
    """Writes `(H, W, C)` as OpenCV writes unsigned numbers of 16 bits; two channels: with alpha."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    kind = {2: 4, 3: 2, 4: 6}[values.shape[2]]
    header = struct.pack(">IIBBBBB", values.shape[1], len(values), 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    file.write_bytes(PNG_SIGNATURE + b"".join(png_chunk(*chunk) for chunk in chunks))
    return file


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_labels_in_colours_of_16_bits_are_refused(tmp_path, channels):
    """Pillow reads the upper 8 bits of each: all labels were 0."""
    labels, file = np.arange(12).reshape(3, 4, 1).repeat(channels, 2), tmp_path / "mask.png"
    if channels != 3:
        labels[..., -1] = 65535  # opaque
    colours_of_16_bits(file, labels)
    with pytest.raises(UnreadableImageError, match=r"16 bits a channel, .* save it with 8 bits"):
        reading.read_values(file)
    colours = 257 * np.arange(12).reshape(3, 4, 1).repeat(3, 2)  # as GIMP writes them
    read = np.asarray(reading.read_values(colours_of_16_bits(file, colours)))
    assert np.array_equal(read, colours / 257)
    labels[..., : channels - (channels != 3)] = 0  # an image of background alone
    black = np.asarray(reading.read_values(colours_of_16_bits(file, labels)))
    assert not black[..., :3].any()


def test_a_black_mask_of_16_bits_a_pixel_is_a_mask(tmp_path):
    header = struct.pack("<IiiHHIIiiII", 40, 4, 2, 1, 16, 3, 16, 0, 0, 0, 0)
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)  # of red, green and blue
    start = struct.pack("<2sIHHI", b"BM", 82, 0, 0, 14 + len(header) + len(masks))
    (tmp_path / "mask.bmp").write_bytes(start + header + masks + bytes(16))
    assert not np.asarray(reading.read_values(tmp_path / "mask.bmp")).any()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_an_unreadable_image(tmp_path, make):
    make(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match=r"a\.png \(no file, but a folder, pipe"):
        read_picture(tmp_path / "a.png")
