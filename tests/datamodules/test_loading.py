"""Every draw is a function of (seed, epoch, index)."""

import multiprocessing
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread, current_thread, main_thread

import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from torch.utils.data import Dataset

from datamodules import loading
from datamodules.image_files import ImageFiles
from datamodules.image_folder import ImageFolder
from datamodules.linear_probe import LabelledDataModule
from datamodules.listing import judging_place
from datamodules.loading import Batch, Loading
from datamodules.memory_cache import MemoryCache
from datamodules.seeding import MicroBatchSampler, mix, seeded
from datamodules.self_supervised import ViewsDataModule
from datamodules.shapes import Shapes
from datamodules.transforms.barlow_twins import BarlowTwinsViews
from datamodules.workers import WorkerKilledError, begin
from tests.conftest import files_at_most


def batches(root: Path, epoch: int = 0, **settings: int | None) -> list[Batch]:
    loading = Loading(**{"batch_size": 6, "seed": 3, **settings})  # type: ignore[arg-type]
    data = ViewsDataModule(Shapes(str(root)), BarlowTwinsViews(16), 16, loading)
    data.setup("fit")
    first = epoch * (24 // loading.batch_size)
    return list(loading.loader(data.train_set, first_batch=lambda: first))


def assert_equal_batches(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.indices, other.indices)
        for view, same in zip(one.views, other.views, strict=True):
            assert torch.equal(torch.cat(view), torch.cat(same))


def test_the_number_of_workers_changes_nothing(shapes_root):
    assert_equal_batches(batches(shapes_root), batches(shapes_root, num_workers=2))


@pytest.fixture
def forkserver() -> Iterator[None]:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)  # Python 3.14's on Linux
    yield
    multiprocessing.set_start_method(before, force=True)


def test_workers_load_what_a_notebook_defines_under_any_python(forkserver):
    class Cell(Dataset[int]):
        """Of a class in a cell, or in here, other processes find no definition."""

        def __len__(self) -> int:
            return 6

        def __getitem__(self, draw: tuple[int, int]) -> int:
            return draw[1]

    loader = Loading(batch_size=6, num_workers=1).loader(Cell(), collate=sorted, join=list)
    assert list(loader) == [[[0, 1, 2, 3, 4, 5]]]
    loader.stop()


class Slow(ProgressColumn):
    """A bar that a thread draws until it is told to be ready."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.ready = Event(), Event()

    def render(self, task: Task) -> str:
        if current_thread() is not main_thread():
            self.begun.set()
            self.ready.wait()
        return ""


def prints() -> None:
    begin(0)
    print("Corrupt EXIF data", file=sys.stderr)  # as a library warns


def test_a_worker_that_prints_does_not_wait_for_a_bar():
    """The run waited for it for ever where it was forked while the bar was drawn."""
    column = Slow()
    with Progress(column, console=Console(force_terminal=True), auto_refresh=False) as bar:
        bar.add_task("")
        drawing = Thread(target=bar.refresh)
        drawing.start()
        column.begun.wait()
        worker = multiprocessing.get_context("fork").Process(target=prints, daemon=True)
        worker.start()
        worker.join(10)
        column.ready.set()
        drawing.join()
    worker.kill()
    worker.join()
    assert worker.exitcode == 0


def test_a_worker_that_can_hand_nothing_over_ends_the_run_in_words(shapes_root):
    """As in a container with little shared memory; the run waited for ever."""
    with files_at_most(1000), pytest.raises(WorkerKilledError, match="--shm-size") as caught:
        batches(shapes_root, num_workers=1)
    assert caught.value.advice == "--data.num_workers 0"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of torch
def test_workers_that_cannot_start_are_said_to_be_needed_by_nobody(shapes_root):
    with files_at_most(10), pytest.raises(OSError, match=r"cannot be started .*num_workers 0"):
        batches(shapes_root, num_workers=1)


def test_chunking_changes_nothing_but_the_pieces(shapes_root):
    plain, chunked = batches(shapes_root), batches(shapes_root, chunk_size=2, num_workers=2)
    assert_equal_batches(plain, chunked)
    assert [len(chunk) for chunk in chunked[0].views[1]] == [2, 2, 2]
    assert chunked[0].views[0][0].dtype == torch.uint8
    assert len(chunked[0]) == 6


def test_seeds_and_epochs_differ(shapes_root):
    base = batches(shapes_root)
    for other in (batches(shapes_root, epoch=1), batches(shapes_root, seed=4)):
        assert not torch.equal(base[0].indices, other[0].indices)
    assert sorted(torch.cat([b.indices for b in base]).tolist()) == list(range(24))


def test_an_epoch_can_be_entered_anywhere(shapes_root):
    loading = Loading(batch_size=6, seed=3)
    data = ViewsDataModule(Shapes(str(shapes_root)), BarlowTwinsViews(16), 16, loading)
    data.setup("fit")
    rest = list(loading.loader(data.train_set, first_batch=lambda: 4 + 3))
    assert_equal_batches(rest, batches(shapes_root, epoch=1)[3:])


def test_validation_repeats_itself(shapes_root):
    loading = Loading(batch_size=4)
    data = ViewsDataModule(Shapes(str(shapes_root)), BarlowTwinsViews(16), 16, loading)
    data.setup("fit")
    loader = data.val_dataloader()
    assert_equal_batches(list(loader), list(loader))  # type: ignore[arg-type]


def test_batches_of_validation_are_mixed_as_those_of_training(tmp_path):
    """Files lie by class: in their order a batch would be of one, and the last left out."""
    for part in ("train", "val"):
        for name in "ab":
            for index in range(12):
                put(tmp_path / part / name / f"{index}.png")
    data = ViewsDataModule(ImageFolder(str(tmp_path)), BarlowTwinsViews(8), 8, Loading(8))
    data.setup("fit")
    judged = list(data.val_dataloader())
    classes = [{data.val_files[i].parent.name for i in batch.indices} for batch in judged]
    assert classes == [{"a", "b"}] * 3
    assert sorted(torch.cat([batch.indices for batch in judged]).tolist()) == list(range(24))


def test_loading_takes_no_draw_from_the_model(shapes_root):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    batches(shapes_root)
    assert torch.equal(torch.rand(3), expected)


def test_seeded_is_a_function_of_its_key():
    draws = []
    for key in ((0, 1, 2), (0, 1, 2), (0, 2, 1), (1, 1, 2)):
        with seeded(*key):
            draws.append(torch.rand(1).item())
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3
    assert mix(1, 23) != mix(12, 3)


def test_only_full_batches():
    sampler = MicroBatchSampler(10, [2, 2], 2, 0, lambda: 0)
    assert [len(micro) for micro in sampler] == [2, 2, 2, 2]
    assert len(sampler) == 4


class Itself(Dataset):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, draw):
        return draw[1]


@pytest.mark.parametrize(("images", "batch"), [(5, 2), (7, 4), (9, 8), (2, 2), (101, 2), (5, 1)])
def test_processes_evaluate_every_image_in_equally_many_batches(monkeypatch, images, batch):
    """A network with BatchNorm exchanges its statistics in each: one more would wait for ever."""
    monkeypatch.setattr(loading, "num_processes", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(loading, "process_rank", lambda rank=rank: rank)
        shares.append(list(Loading(batch).every(Itself(images), list)))
    assert len(shares[0]) == len(shares[1])
    seen = [index for share in shares for part in share for index in part]
    assert sorted(seen) == list(range(images))
    assert all(part for share in shares for part in share)
    with pytest.raises(ValueError, match=r"^1 image cannot be shared by 2 processes\.$"):
        Loading(batch).every(Itself(1), list)


def test_limit(shapes_root):
    assert len(batches(shapes_root, limit_train_batches=2)) == 2
    assert len(batches(shapes_root, limit_train_batches=9)) == 4
    # Epochs stay what they are: the second starts a new permutation.
    second = batches(shapes_root, epoch=1)[:1]
    loading = Loading(batch_size=6, seed=3, limit_train_batches=2)
    data = ViewsDataModule(Shapes(str(shapes_root)), BarlowTwinsViews(16), 16, loading)
    data.setup("fit")
    limited = list(loading.loader(data.train_set, first_batch=lambda: 2))
    assert_equal_batches(limited[:1], second)


def test_a_batch_larger_than_the_data_set_is_refused(shapes_root):
    with pytest.raises(ValueError, match=r"--data.batch_size 25 is larger .* 24 images"):
        batches(shapes_root, batch_size=25)
    with pytest.raises(ValueError, match=r"data set: 1 image\. Give more images\.$"):
        Loading(2).check(1)


def test_an_unreadable_image_is_replaced_by_the_next_and_named(image_folder):
    files = sorted(image_folder.rglob("*.png"))
    content = files[3].read_bytes()
    files[3].write_bytes(content[: len(content) // 2])
    files[4].write_text("no image")
    dataset = ImageFiles(files, BarlowTwinsViews(16), seed=0)
    sample = dataset[(0, 3)]
    assert sample.position == 5
    assert [str(files[3]), str(files[4])] == [name.partition(" (")[0] for name in sample.unreadable]


def test_a_folder_of_unreadable_images_is_an_error(tmp_path):
    files = [tmp_path / f"{i}.jpg" for i in range(3)]
    for file in files:
        file.write_text("no image")
    with pytest.raises(ValueError, match="cannot be read"):
        ImageFiles(files, BarlowTwinsViews(16), seed=0)[(0, 0)]


def test_image_folder_splits_do_not_overlap_and_do_not_move(image_folder):
    data = ImageFolder(str(image_folder), val_fraction=0.3)
    train, val = set(data.files("train")), set(data.files("val"))
    assert train
    assert val
    assert not train & val
    assert train | val == set(data.files("all"))
    Image.new("RGB", (9, 9)).save(image_folder / "new.png")
    assert val <= set(data.files("val"))


def test_image_folder_uses_train_and_val_folders(image_folder):
    (image_folder / "deep").rename(image_folder / "train")
    (image_folder / "val").mkdir()
    Image.new("RGB", (9, 9)).save(image_folder / "val" / "v.png")
    source = ImageFolder(str(image_folder), "all")
    assert len(source.files("train")) == 10
    assert [file.name for file in source.files("val")] == ["v.png"]
    data = ViewsDataModule(source, BarlowTwinsViews(16), 16, Loading(2))
    data.setup("fit")
    assert data.transductive
    with pytest.raises(ValueError, match="no such split"):
        source.files("trainaug")


def test_an_image_folder_without_val_leaves_images_to_choose_by(tmp_path):
    for name in "ab":
        for index in range(100):
            put(tmp_path / name / f"{index}.png")
    source = ImageFolder(str(tmp_path), val_fraction=0.2)
    data = LabelledDataModule(source, 8, Loading(2), val_fraction=0.2)
    data.setup("fit")
    train, val, test = (set(data.splits[part].files) for part in ("train", "val", "test"))
    assert len(train) + len(val) + len(test) == len(train | val | test) == 200
    assert 15 <= len(val) <= 50  # 32 are expected, 3 standard deviations are 15
    pretraining = ViewsDataModule(source, BarlowTwinsViews(8), 8, Loading(2))
    pretraining.setup("fit")
    online = pretraining.labelled_examples(200, 0.2)
    assert all(len(labels) > 15 for _, labels in online[:2])


def put(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(file)


@pytest.mark.parametrize(
    ("parts", "train", "val"),
    [
        ("train val", "train", "val"),
        ("train test", "train", "test"),
        ("train valid", "train", "valid"),
        ("train validation test", "train", "validation"),
        ("Train Val", "Train", "Val"),
        ("training validation testing", "training", "validation"),
    ],
)
def test_folders_of_splits_are_no_classes(tmp_path, parts, train, val):
    for part in parts.split():
        for name in "ab":
            put(tmp_path / part / name / f"{part}.png")
    source = ImageFolder(str(tmp_path))
    for split, folder in (("train", train), ("val", val)):
        assert source.labels(split) == (("a", "b"), [0, 1])
        assert {file.parts[-3] for file in source.files(split)} == {folder}
    assert len(source.files("all")) == 2 * len(parts.split())


def test_a_probe_is_judged_by_test_and_chosen_by_val_where_both_are(tmp_path, recwarn):
    for part in ("train", "valid", "test"):
        for name in "ab":
            for index in range(4):
                put(tmp_path / part / name / f"{index}.png")

    def parts():
        data = LabelledDataModule(ImageFolder(str(tmp_path)), 8, Loading(2), val_fraction=0.5)
        data.setup("fit")
        return {
            split: ({file.parts[-3] for file in found.files}, len(found))
            for split, found in data.splits.items()
        }

    assert parts() == {"train": ({"train"}, 8), "val": ({"valid"}, 8), "test": ({"test"}, 8)}
    assert not recwarn
    (tmp_path / "test" / "b").rename(tmp_path / "test" / "unknown")  # as of a competition
    with pytest.warns(UserWarning, match=r"test is left out, and .*valid is the test set"):
        found = parts()
    assert found["test"] == ({"valid"}, 8)
    assert found["train"][0] == found["val"][0] == {"train"}


def test_train_alone_is_parted_and_val_alone_is_explained(tmp_path):
    for name in "ab":
        for index in range(30):
            put(tmp_path / "train" / name / f"{index}.png")
    source = ImageFolder(str(tmp_path), val_fraction=0.3)
    parts = [source.files(split) for split in ("train", "val")]
    assert all(parts)
    assert sorted(parts[0] + parts[1]) == source.files("all")
    assert source.labels("val")[0] == ("a", "b")
    (tmp_path / "train").rename(tmp_path / "test")
    with pytest.raises(FileNotFoundError, match=r"There is .*test, but no .*train"):
        ImageFolder(str(tmp_path)).files("train")


def test_an_accent_is_one_class_however_it_is_written(tmp_path):
    for split, form in (("train", "NFC"), ("val", "NFD")):
        for name in ("b", unicodedata.normalize(form, "café")):
            put(tmp_path / split / name / "1.png")
    source = ImageFolder(str(tmp_path))
    assert source.labels("train") == source.labels("val") == (("b", "café"), [0, 1])


def test_few_images_of_a_class_may_all_fall_to_one_part(tmp_path):
    for name in "abcd":
        for index in range(4):
            put(tmp_path / name / f"{index}.png")
    source = ImageFolder(str(tmp_path), val_fraction=0.2)
    judged = {file.parent.name for file in source.files("val")}
    assert 0 < len(judged) < 4
    for split in ("train", "val"):
        classes, labels = source.labels(split)
        assert classes == ("a", "b", "c", "d")
        assert [classes[n] for n in labels] == [f.parent.name for f in source.files(split)]
    data = LabelledDataModule(source, 8, Loading(2), val_fraction=0.0)
    data.setup("fit")
    assert set(data.splits["test"].labels) == {"abcd".index(name) for name in judged}
    rare = (tmp_path / "rare" / f"{number}.png" for number in range(100))
    put(next(file for file in rare if judging_place(file, tmp_path) < 0.2))
    source = ImageFolder(str(tmp_path), val_fraction=0.2)
    data = LabelledDataModule(source, 8, Loading(2), val_fraction=0.0)
    with pytest.warns(UserWarning, match="1 of 5 classes without a training image, such as rare"):
        data.setup("fit")


def test_no_image_to_judge_a_probe_by_is_said_before_it_trains(train, tmp_path, capsys):
    for name in "ab":
        for index in range(3):
            put(tmp_path / "few" / name / f"{index}.png")
    shared = {"data__name": "image_folder", "data__root": tmp_path / "few"}
    assert train(task="linear_probe", data__batch_size=2, **shared)[0] == 2
    error = "None of 6 images is left for the test: add a val/ folder"
    assert error in capsys.readouterr().err


def test_beside_other_classes_train_is_one(tmp_path):
    for name in ("bus", "train"):
        put(tmp_path / name / "1.png")
    assert ImageFolder(str(tmp_path)).labels("all")[0] == ("bus", "train")


def test_no_image_left_to_train_on_is_said(train, tmp_path, capsys):
    names = (f"{number}.png" for number in range(100))
    put(tmp_path / "few" / next(n for n in names if judging_place(Path(n), Path()) < 0.1))
    shared = {"data__name": "image_folder", "data__root": tmp_path / "few"}
    assert train(**shared)[0] == 2
    assert "larger than the data set: 0 images" in capsys.readouterr().err


def test_examples_are_plain_squares(image_folder):
    data = ViewsDataModule(ImageFolder(str(image_folder)), BarlowTwinsViews(16), 24, Loading(2))
    data.setup("fit")
    shown = data.examples("train", 3)
    assert shown.shape == (3, 3, 24, 24)
    assert shown.dtype == torch.uint8
    assert torch.equal(shown, data.examples("train", 3))
    assert data.examples("val", 1, 32).shape == (1, 3, 32, 32)


def test_examples_are_decoded_once(shapes_root):
    data = ViewsDataModule(Shapes(str(shapes_root)), BarlowTwinsViews(16), 16, Loading(2))
    data.setup("fit")
    shown = data.examples("train", 4), data.labelled_examples(6, 0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", None)  # nothing is read
        again = data.examples("train", 4), data.labelled_examples(6, 0.5)
        none = data.examples("train", 4, 24)
        assert (none.shape, none.dtype) == ((0, 3, 24, 24), torch.uint8)
    assert torch.equal(shown[0], again[0])
    for part, same in zip(shown[1][:2], again[1][:2], strict=True):
        assert torch.equal(part[0], same[0])
    again[0].zero_()  # what is given belongs to who asked
    assert torch.equal(shown[0], data.examples("train", 4))


def test_no_more_is_kept_than_there_is_room_for():
    cache, made = MemoryCache(most_bytes=10), []

    def make(size: int) -> torch.Tensor:
        made.append(size)
        return torch.zeros(size, dtype=torch.uint8)

    for _ in range(2):
        for size in (4, 5, 3):
            assert len(cache.get(size, lambda size=size: make(size))) == size
        assert cache.get("unreadable", lambda: made.append(0)) is None
        assert [len(part) for part in cache.get("two", lambda: (make(1), make(9)))] == [1, 9]
    assert made == [4, 5, 3, 0, 1, 9, 3, 1, 9]


def test_examples_that_cannot_be_read_are_replaced(image_folder):
    for file in sorted(image_folder.rglob("*.png"))[:4]:
        file.write_text("no image")
    data = ViewsDataModule(ImageFolder(str(image_folder)), BarlowTwinsViews(16), 24, Loading(2))
    data.setup("fit")
    shown = data.examples("train", 5)
    assert len(shown) == 5
    assert len(torch.unique(shown, dim=0)) == 5


def test_an_error_in_a_worker_is_told_in_its_own_words(tmp_path):
    files = [tmp_path / f"{i}.jpg" for i in range(4)]
    for file in files:
        file.write_text("no image")
    dataset = ImageFiles(files, BarlowTwinsViews(16), seed=0)
    loader = Loading(batch_size=2, num_workers=1).loader(dataset)
    with pytest.raises(ValueError, match=r"^4 images in a row cannot be read") as caught:
        next(iter(loader))
    assert "Traceback" not in str(caught.value)


def test_what_is_shown_of_a_batch_does_not_keep_the_rest():
    chunks = [torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8) for _ in range(4)]
    for count in (1, 3, 8, 9):
        (shown,) = Batch((chunks,), torch.arange(8), ()).previews(count).values()
        assert torch.equal(shown, torch.cat(chunks)[:count])
        assert shown.untyped_storage().nbytes() == shown.nbytes


def test_views_of_two_sizes_are_global_and_local():
    sides = (32, 32, 16, 16)
    views = tuple([torch.full((2, 3, side, side), side, dtype=torch.uint8)] * 2 for side in sides)
    shown = Batch(views, torch.arange(4), ()).previews(3)
    assert list(shown) == [
        "global view 1\n32 px",
        "global view 2\n32 px",
        "local view 3\n16 px",
        "local view 4\n16 px",
    ]
    assert [len(images) for images in shown.values()] == [3] * 4
    assert list(Batch(views[:2], torch.arange(4), ()).previews(3)) == [
        "view 1\n32 px",
        "view 2\n32 px",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="tensors are no open files there")
def test_a_large_batch_in_small_chunks_needs_more_open_files_than_are_given(shapes_root):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("this system permits no more")
    opened = len(list(Path("/dev/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 30, hard))  # a batch has 36 tensors
    try:
        assert len(batches(shapes_root, batch_size=24, chunk_size=2, num_workers=1)) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
