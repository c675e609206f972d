"""A cache gives back what was computed, notices what has changed, and leaves nothing half done."""

import errno
import json
import os
import pickle
import shutil
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

import datamodules.feature_cache as feature_cache
from datamodules.digests import tensors_digest
from datamodules.image_store import StoredImages, StoreWriter
from datamodules.loading import Loading
from datamodules.masked_images import FixedViewsOf, LabelledSample, collate
from datamodules.seeding import seeded
from datamodules.segmentation import SegmentationDataModule
from datamodules.shapes import Shapes
from datamodules.transforms.segmentation import FixedViews, Standard
from utils.files import owner

VIEWS = 4  # two scales, each with its mirror image


def module(root: Path, seed: int = 3, **changed) -> SegmentationDataModule:
    protocol = Standard(48)
    views = FixedViews(32, protocol, changed.pop("scales", [1.0, 1.5]), changed.pop("crops", 1))
    loading = Loading(batch_size=4, seed=seed)
    return SegmentationDataModule(Shapes(str(root)), protocol, 32, loading, 0.25, views)


class Encoder:
    """Counts what it is asked for."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, images: Tensor) -> list[dict[str, Tensor]]:
        self.images += len(images)
        return [
            {
                "map0": image.float().mean(0).half(),
                "sum": image.sum()[None],
                "none": image.new_zeros(0, 3).half(),
            }
            for image in images
        ]


def cached(root: Path, cache: Path, facts=None, test: bool = True, **changed):
    data, encode = module(root, **changed), Encoder()
    data.cache_features(cache, facts or {"weights": "a"}, encode, test)
    return data, encode


def samples(data: SegmentationDataModule) -> list[LabelledSample]:
    train = [data.train_set[epoch, index] for epoch in range(3) for index in range(4)]
    whole = [each[0, index] for each in (data.val_set, data.test_set) for index in range(3)]
    return train + whole


def test_what_is_read_is_what_is_computed(shapes_root, tmp_path, said):
    data, encode = cached(shapes_root, tmp_path / "cache")
    plain = module(shapes_root)
    plain.setup("fit")
    for found, expected in zip(samples(data), samples(plain), strict=True):
        assert torch.equal(found.image, expected.image)
        assert torch.equal(found.labels, expected.labels)
        assert found.position == expected.position
        assert torch.equal(found.stored["map0"], expected.image.float().mean(0).half())
        assert found.stored["sum"] == expected.image.sum()
        assert found.stored["none"].shape == (0, 3)
        assert expected.stored is None
    images = VIEWS * len(data.train_set) + len(data.val_set) + len(data.test_set)
    assert encode.images == images
    assert sum("needs about" in line for line in said) == VIEWS + 2
    batch = next(iter(data.train_dataloader()))
    assert len(batch.stored) == 4
    assert collate([samples(plain)[0]]).stored == ()
    assert data.train_dataloader().micro_batches.num_workers == 0


def test_every_epoch_sees_one_of_the_views(shapes_root, tmp_path, said):
    data, _ = cached(shapes_root, tmp_path / "cache")
    seen = Counter(int(data.train_set[epoch, 5].stored["sum"]) for epoch in range(40))
    assert len(seen) == VIEWS
    assert min(seen.values()) > 3
    again = [int(data.train_set[epoch, 5].stored["sum"]) for epoch in range(40)]
    assert Counter(again) == seen


def test_images_of_an_epoch_are_seen_in_different_views():
    views = [{(0, index): (number, index) for index in range(40)} for number in range(VIEWS)]
    for epoch in range(2):
        found = [FixedViewsOf(views, 1)[epoch, index] for index in range(40)]
        assert [index for _, index in found] == list(range(40))
        assert {number for number, _ in found} == set(range(VIEWS))


def test_views_come_in_pairs_of_mirror_images():
    views = FixedViews(32, Standard(32), [1.0, 1.5], 2)
    assert len(views) == 8
    assert views.kinds[:4] == [(1.0, False), (1.0, True)] * 2
    from tests.datamodules.test_segmentation import marked

    with seeded(0):
        image, labels = views.view(0)(*marked(32, 32))
        mirrored, mirrored_labels = views.view(1)(*marked(32, 32))
    assert torch.equal(image.flip(-1), mirrored)
    assert torch.equal(labels.flip(-1), mirrored_labels)
    with seeded(1):
        crop, labels = views.view(4)(*marked(40, 50))
    assert crop.shape == (3, 32, 32)
    assert ((crop[0].float() / 60).round() == labels).float().mean() > 0.8


def test_a_second_run_reads(shapes_root, tmp_path, said):
    cached(shapes_root, tmp_path / "cache")
    said.clear()
    data, encode = cached(
        shapes_root, tmp_path / "cache", seed=9
    )  # views are the same for all seeds
    assert encode.images == 0
    assert all(" read from " in line for line in said)
    assert samples(data)[0].stored is not None


def test_setting_up_again_opens_nothing_again(shapes_root, tmp_path, said):
    data, _ = cached(shapes_root, tmp_path / "cache")
    before = data.test_set
    data.setup("fit")
    assert data.test_set is before


@pytest.mark.parametrize("change", ["weights", "scales", "crops", "content"])
def test_what_it_follows_from_makes_another_cache(shapes_root, tmp_path, said, change):
    root = tmp_path / "data"
    shutil.copytree(shapes_root, root)
    cached(root, tmp_path / "cache")
    if change == "weights":
        _, encode = cached(root, tmp_path / "cache", {"weights": "b"})
    elif change == "content":
        file = Shapes(str(root)).pairs("val")[0][0]
        ImageOps.invert(Image.open(file)).save(file)
        _, encode = cached(root, tmp_path / "cache")
        assert encode.images == 8  # the test images only
    else:
        changed = {"scales": {"scales": [1.0, 1.4]}, "crops": {"crops": 2}}[change]
        _, encode = cached(root, tmp_path / "cache", **changed)
    assert encode.images > 0


@pytest.mark.parametrize("damage", ["byte", "short", "index", "missing"])
def test_a_damaged_cache_is_built_anew(shapes_root, tmp_path, said, damage):
    cached(shapes_root, tmp_path / "cache")
    for folder in (tmp_path / "cache").iterdir():
        file = folder / "data.bin"
        content = bytearray(file.read_bytes())
        if damage == "byte":
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        elif damage == "short":
            file.write_bytes(content[: len(content) // 2])
        elif damage == "index":
            (folder / "index.json").write_text("{")
        else:
            file.unlink()
    said.clear()
    data, encode = cached(shapes_root, tmp_path / "cache")
    assert sum("is damaged (" in line for line in said) == VIEWS + 2
    assert encode.images > 0
    assert samples(data)[0].stored is not None
    assert len(list((tmp_path / "cache").iterdir())) == VIEWS + 2


@pytest.fixture
def store(tmp_path) -> Path:
    """Two images and a tensor."""
    writer = StoreWriter(tmp_path)
    for i in range(2):
        image = torch.full((3, 4, 4), i, dtype=torch.uint8)
        sample = LabelledSample(image, torch.full((4, 4), i), i, (f"{i}.jpg",))
        writer.add(sample, {"map0": torch.full((2, 3), float(i))})
    writer.close()
    return tmp_path


def test_a_changed_bit_of_an_index_is_found(store):
    file = store / "index.json"
    content = file.read_bytes()
    assert len(StoredImages(store)) == 2
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        file.write_bytes(changed)
        with pytest.raises(ValueError, match="is damaged"):
            StoredImages(store)


def test_a_store_of_before_its_index_had_a_checksum_is_not_read(store):
    file = store / "index.json"
    index = json.loads(file.read_text())
    del index["checksum"]
    file.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="is damaged"):
        StoredImages(store)


def test_a_damaged_bit_of_padding_is_no_damage(shapes_root, tmp_path, said):
    """Every byte that is read is checked, and nothing else."""
    cached(shapes_root, tmp_path / "cache")
    folder = next((tmp_path / "cache").iterdir())
    opened = StoredImages(folder)
    index = json.loads((folder / "index.json").read_text())
    assert len(index["entries"]) == len(opened)
    assert (folder / "data.bin").stat().st_size % 64 == 0


def test_a_full_disk_leaves_nothing(shapes_root, tmp_path, said, monkeypatch):
    usage = SimpleNamespace(total=10, used=9, free=1000)
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"is full .* needed, 0.00 GB free"):
        cached(shapes_root, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.undo()
    added = StoreWriter.add

    def full(self, *given):
        if len(self.entries) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        added(self, *given)

    monkeypatch.setattr(StoreWriter, "add", full)
    with pytest.raises(ValueError, match=r"nothing was kept.*feature_cache off"):
        cached(shapes_root, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_cannot_be_written(shapes_root, tmp_path, said, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        cached(shapes_root, tmp_path / "file" / "cache")

    def read_only(*_, **__):
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(ValueError, match=r"cannot be written .*Read-only.*Give another"):
        cached(shapes_root, tmp_path / "cache")


def test_an_interrupted_build_leaves_nothing(shapes_root, tmp_path, said):
    def interrupted(_: Tensor) -> list[dict[str, Tensor]]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        module(shapes_root).cache_features(tmp_path / "cache", {}, interrupted, True)
    assert list((tmp_path / "cache").iterdir()) == []


def test_of_two_builds_the_first_to_finish_wins(shapes_root, tmp_path, said):
    """The other run finishes while this one is half way."""
    cache, other = tmp_path / "cache", {}

    def files() -> dict[Path, int]:
        found = (file for file in cache.glob("*/data.bin") if file.parent.suffix != ".part")
        return {file: file.stat().st_ino for file in found}

    class Interrupting(Encoder):
        def __call__(self, images: Tensor) -> list[dict[str, Tensor]]:
            if not self.images:
                other["data"], _ = cached(shapes_root, cache)
                other["files"] = files()
            return super().__call__(images)

    data = module(shapes_root)
    data.cache_features(cache, {"weights": "a"}, Interrupting(), True)
    assert len(list(cache.iterdir())) == VIEWS + 2
    # Where it has them mapped, they are not to be replaced: a network's disk would lose them.
    assert files() == other["files"]
    for mine, others in zip(samples(data), samples(other["data"]), strict=True):
        assert torch.equal(mine.image, others.image)


def test_what_a_killed_run_left_is_removed(shapes_root, tmp_path, said, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 999999999)
    dead = tmp_path / "cache" / f"abc{owner()}.part"
    monkeypatch.undo()
    dead.mkdir(parents=True)
    os.utime(dead, (0, time.time() - 3600))
    cached(shapes_root, tmp_path / "cache")
    assert not dead.exists()


def test_workers_map_the_file_themselves(shapes_root, tmp_path, said):
    data, _ = cached(shapes_root, tmp_path / "cache")
    first = data.val_set[0, 0]
    again = pickle.loads(pickle.dumps(data.val_set))
    assert len(pickle.dumps(data.val_set)) < 100_000
    assert torch.equal(again[0, 0].image, first.image)


def test_unreadable_images_are_named_from_the_cache_too(shapes_root, tmp_path, said):
    root = tmp_path / "data"
    shutil.copytree(shapes_root, root)
    first = module(root)
    first.setup("fit")
    first.train_files[2].write_bytes(b"nothing")
    for _ in range(2):
        data, _ = cached(root, tmp_path / "cache")
        view = data.train_set.views[1]
        named = [name for i in range(len(view)) for name in view[0, i].unreadable]
        assert any(first.train_files[2].name in name for name in named)
        assert view[0, 2].position == 3


def test_test_images_seen_otherwise_are_not_cached(shapes_root, tmp_path, said):
    data, _ = cached(shapes_root, tmp_path / "cache", test=False)
    assert data.test_set[0, 0].stored is None
    assert data.val_set[0, 0].stored is not None


def test_weights_have_a_digest():
    state = {"a": torch.arange(6.0), "b": torch.tensor(1)}
    assert tensors_digest(state) == tensors_digest({k: v.clone() for k, v in state.items()})
    assert tensors_digest(state) != tensors_digest(state | {"b": torch.tensor(2)})
    assert tensors_digest(state) != tensors_digest({f"other.{k}": v for k, v in state.items()})
