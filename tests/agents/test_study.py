"""Studies on tiny runs: order, failures, tables, figures, and who may go on with what."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import wandb
import yaml
from filelock import FileLock
from PIL import Image
from rich.console import Console

from agents.commands.study import runner
from agents.commands.study.board import Board, share_done
from agents.commands.study.figures import study_figure
from agents.commands.study.output import write_output
from agents.commands.study.plan import load_study
from agents.commands.study.room import announce_room
from agents.commands.study.table import study_table
from config.parsing import parse
from datamodules.shapes import Shapes
from main import main
from tests.conftest import summary, tiny
from tests.datamodules.own_masks import COLOURS, HEX, coloured
from tests.datamodules.own_masks import folder as mask_folder
from tests.pages import NASTY, Page, check_fits_narrow_screens, check_needs_no_network
from utils import page as pages
from utils.run_folder import RunFolder
from utils.text import in_units
from utils.weight_files import read_checkpoint

SEGMENT = {
    "task": "segmentation",
    "backbone.freeze": True,
    "trainer.max_epochs": 1,
}


@pytest.fixture
def study_file(tmp_path, shapes_root):
    """Writes mine.yaml; its runs lie in runs/mine."""

    def write(rows: list, **content: object) -> Path:
        for row in rows:
            own = {"data.root": str(shapes_root), **row.get("settings", {})}
            every = {k: v for k, v in tiny(own).items() if k != "run.seed"}
            row["settings"] = {
                k: v if k in own else yaml.safe_load(str(v)) for k, v in every.items()
            }
        file = tmp_path / "mine.yaml"
        content = {"metrics": {"test/miou": "mIoU", "val/loss": "loss"}, "rows": rows} | content
        file.write_text(yaml.safe_dump(content))
        return file

    return write


@pytest.fixture
def in_process(monkeypatch):
    """Runs of a study in this process; returns their command lines."""
    started: list[list[str]] = []

    def start(command, stream, group, *tags):
        started.append(command[2:])
        code = main(command[2:])
        return SimpleNamespace(poll=lambda: code)

    monkeypatch.setattr(runner, "start", start)
    monkeypatch.setattr(runner, "_WAIT_SECONDS", 0.05)
    return started


BT = {"barlow_twins.projector_dim": 16, "trainer.max_epochs": 1}
TWO_STAGES = [
    {"name": "measured", "settings": {**SEGMENT, "backbone.weights": "run:pretrained"}},
    {"name": "pretrained", "settings": BT, "shown": False},
]


def test_a_study_says_what_all_its_checkpoints_will_take(
    study_file, tmp_path, in_process, said, monkeypatch
):
    file, runs_dir = study_file(TWO_STAGES), tmp_path / "runs"
    words = ["--study", str(file), "--seeds", "2", "--run.dir", str(runs_dir)]
    full = SimpleNamespace(free=1000)
    monkeypatch.setattr("agents.preflight.shutil.disk_usage", lambda folder: full)
    assert main(words) == 0
    sizes = []
    for name in ("pretrained", "measured"):
        sizes.append(0)
        state = read_checkpoint(runs_dir / "mine" / f"{name}-s0" / "checkpoints" / "last.ckpt")
        for key, value in state["state_dict"].items():
            if not key.endswith(("running_mean", "running_var", "num_batches_tracked")):
                frozen = name == "measured" and "backbone" in key
                sizes[-1] += value.numel() * (4 if frozen else 12)
    needed = 2 * 3 * sum(sizes) + max(sizes)  # three are kept of each run, a fourth is written
    of_all = f"checkpoints of 4 runs: up to {in_units(needed)}B of 1 kB that are free."
    warning = f"warning: The disk of {runs_dir / 'mine'} will be full before the end"
    assert said[0] == of_all
    assert said[1].startswith(warning)
    said.clear()
    assert main(words) == 0
    assert not said  # nothing is left to do


def test_rows_on_the_same_images_share_one_listing(study_file, tmp_path, said, monkeypatch):
    listed: list[str] = []

    def noted(listing):
        def call(source, split):
            listed.append(f"{listing.__name__} {split}")
            return listing(source, split)

        return call

    for name in ("files", "pairs"):
        monkeypatch.setattr(Shapes, name, noted(getattr(Shapes, name)))
    held_out = {**SEGMENT, "data.val_fraction": 0.3}
    rows = [
        {"name": "a", "settings": BT},
        {"name": "b", "settings": {**BT, "data.batch_size": 4}},
        {"name": "c", "settings": {"task": "lejepa"}},
        {"name": "d", "settings": SEGMENT},
        {"name": "e", "settings": {**SEGMENT, "backbone.weights": "run:a"}},
        {"name": "f", "settings": held_out},
    ]
    study = load_study(str(study_file(rows)), None, [], str(tmp_path / "runs"))
    announce_room(study)
    assert said[0].startswith("checkpoints of 6 runs: ")
    assert Counter(listed)["files train"] == 1  # views, of a, b and c
    assert Counter(listed)["pairs train"] == 2  # masks, of d and e, and with fewer images of f


def test_a_study_is_one_command(study_file, tmp_path, in_process, capsys):
    file = study_file(
        [
            {
                "name": "random",
                "label": "random & 100 %",
                "settings": {**SEGMENT, "callbacks.segmentation_predictions.enabled": True},
                "published": 0.25,
            },
            {
                "name": "measured",
                "settings": {
                    **SEGMENT,
                    "backbone.weights": "run:pretrained",
                    "callbacks.segmentation_predictions.enabled": True,
                    "callbacks.attention_maps.enabled": True,
                    "callbacks.effective_receptive_field.enabled": True,
                },
                "note": "a note",
            },
            {
                "name": "pretrained",
                "settings": {**BT, "callbacks.cross_correlation.enabled": True},
                "shown": False,
            },
        ],
        title="Mine",
        protocol="some protocol",
        figures=[
            {"picture": "predictions", "title": "Predictions"},
            {"picture": "matrices", "title": "Matrices"},
            {"picture": "attention", "title": "Attention"},
            {"picture": "receptive_fields", "title": "Fields"},
        ],
    )
    words = ["--study", str(file), "--seeds", "2", "--run.dir", str(tmp_path / "runs")]
    assert main([*words, "--print-commands"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 6
    assert sum("  # after pretrained-s" in line for line in lines) == 2
    assert not (tmp_path / "runs").exists()

    assert main(words) == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "runs" / "mine"
    table = (folder / "table.md").read_text()
    assert table in printed
    assert "Protocol: some protocol" in table
    assert "Judged by: voc12_standard" in table
    assert "| random & 100 % | 2/2 |" in table
    values = [summary(folder / f"random-s{seed}")["test/miou"] for seed in (0, 1)]
    mean, spread = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5
    assert f"{mean:.3f} ± {spread:.3f} | 0.25 | {mean - 0.25:+.3f}" in table
    with (folder / "table.csv").open() as lines:
        rows = {row["row"]: row for row in csv.DictReader(lines)}
    assert set(rows) == {"random", "measured"}
    assert float(rows["random"]["test/miou mean"]) == pytest.approx(mean, rel=1e-12)
    assert float(rows["random"]["test/miou difference"]) == pytest.approx(mean - 0.25)
    with (folder / "runs.csv").open() as lines:
        assert len(list(csv.DictReader(lines))) == 6
    assert r"random \& 100 \%" in (folder / "table.tex").read_text()
    pictures = sorted(file.name for file in (folder / "figures").iterdir())
    names = ["01-predictions", "02-matrices", "03-attention", "04-receptive_fields"]
    assert [f"{name}.png" for name in names] == [p for p in pictures if p[0] == "0"]
    page = (folder / "report.html").read_text()
    assert page.count("data:image/webp") == len(pictures)
    assert "a note" in page
    check_needs_no_network(page)
    assert "resampled" not in page
    shown = Page(page).pictures
    for title, name in zip(("Predictions", "Matrices", "Attention", "Fields"), names, strict=True):
        drawn = Image.open(folder / "figures" / f"{name}.png").convert("RGB")
        np.testing.assert_array_equal(shown[title][..., :3], np.asarray(drawn))
    # Dependents started from the run of their own seed.
    for seed in (0, 1):
        saved = yaml.safe_load((folder / f"measured-s{seed}" / "hparams.yaml").read_text())
        assert saved["backbone"]["weights"] == f"run:pretrained-s{seed}"
        assert saved["run"]["seed"] == seed

    done = len(in_process)
    assert done == 6
    assert main(words) == 0  # nothing is left to run
    assert len(in_process) == done
    assert main([*words[:2], "--seeds", "3", *words[4:]]) == 0  # one more seed
    assert len(in_process) == done + 3


def test_names_are_text_and_a_page_says_that_it_was_shrunk(study_file, tmp_path, monkeypatch):
    file = study_file(
        [{"name": "a", "label": NASTY, "settings": SEGMENT, "note": f"note {NASTY}"}],
        **dict.fromkeys(("title", "about", "protocol"), NASTY),
        metrics={"test/miou": f"metric {NASTY}"},
    )
    words = ["--logger.mode", "disabled", "--data.root", NASTY]
    study = load_study(str(file), None, words, str(tmp_path / "runs"))
    folder = RunFolder(study.folder / "a-s0")
    folder.path.mkdir(parents=True)
    folder.write_summary({"status": "finished", "test/miou": 0.25, "protocol": NASTY})
    folder.write_environment({"device": f"device {NASTY}"})
    (folder.path / "metrics.csv").write_text("step,val/loss\n0,2.0\n1,1.5\n")
    monkeypatch.setattr(pages, "MAX_BYTES", 6_000)
    write_output(study)
    source = (study.folder / "report.html").read_text()
    page = Page(source)
    assert page.tags.count("script") == 1
    check_fits_narrow_screens(source)
    assert {NASTY, *(f"{what} {NASTY}" for what in ("note", "metric", "device"))} < set(page.cells)
    assert f"--data.root {NASTY}" in page.text
    assert shlex.join(["python", "main.py", *study.words]) in page.text
    assert parse(study.words).overrides == words
    assert page.text.count(NASTY) >= 8
    check_needs_no_network(source)
    (picture,) = page.pictures.values()
    assert f"wider than {picture.shape[1]} pixels were resampled" in page.text


def finished_study(study_file, tmp_path, mode):
    file = study_file([{"name": "a", "settings": SEGMENT}])
    study = load_study(str(file), None, ["--logger.mode", mode], str(tmp_path / "runs"))
    folder = RunFolder(study.folder / "a-s0")
    folder.path.mkdir(parents=True)
    folder.write_summary({"status": "finished", "test/miou": 0.25})
    return study


def test_the_table_is_logged_in_the_group_of_the_runs(study_file, tmp_path, in_process):
    study = finished_study(study_file, tmp_path, "offline")
    assert runner.run_study(study) == 0
    wandb.teardown()  # its writer is another process, which may still be writing
    (log,) = (study.folder / "wandb").glob("offline-run-*/*.wandb")
    assert log.read_bytes().count(b"mine") > 1  # the run and its group
    (table,) = study.folder.rglob("*.table.json")
    logged = json.loads(table.read_text())
    assert logged["columns"] == ["row", "runs", "mIoU", "loss"]
    assert logged["data"] == [["a", "1/1", "0.250", "–"]]


def test_a_service_that_is_gone_keeps_no_table_back(
    study_file, tmp_path, monkeypatch, said, capsys
):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent")
    study = finished_study(study_file, tmp_path, "online")
    assert runner.run_study(study) == 0
    assert "0.250" in capsys.readouterr().out
    assert said[-1].startswith(
        "warning: the table is not on wandb: --logger.mode online: wandb: no"
    )


def test_a_run_is_started_in_the_group_of_its_row_with_the_study_as_a_tag(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_TAGS", "given")
    code = "import os; print(os.environ['WANDB_RUN_GROUP'], os.environ['WANDB_TAGS'])"
    with (tmp_path / "log").open("w") as stream:
        process = runner.start([sys.executable, "-c", code], stream, "mine/row", "mine")
        assert process.wait() == 0
    assert (tmp_path / "log").read_text() == "mine/row mine,given\n"


def test_the_log_of_a_run_is_the_same_on_all_systems(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")  # of files on a Western Windows
    with (tmp_path / "log").open("wb") as stream:
        process = runner.start([sys.executable, "-c", "print('before → now')"], stream, "mine/row")
        assert process.wait() == 0
    assert (tmp_path / "log").read_bytes().decode() == f"before → now{os.linesep}"


def test_it_goes_on_past_a_failure(study_file, tmp_path, in_process, capsys):
    rows = [*TWO_STAGES, {"name": "other", "settings": SEGMENT}]
    rows[1] = {**rows[1], "settings": {**BT, "data.batch_size": 512}}  # more than there are
    file = study_file(rows)
    words = ["--study", str(file), "--run.dir", str(tmp_path / "runs")]
    assert main(words) == 1
    captured = capsys.readouterr()
    assert "pretrained-s0: FAILED" in captured.out
    assert "NOT FINISHED: measured-s0 (not run)" in captured.out
    assert "FAILED: measured-s0: not started, needs pretrained-s0" in captured.err
    assert summary(tmp_path / "runs" / "mine" / "other-s0")["status"] == "finished"
    assert len(in_process) == 2


def test_another_study_in_its_folder_is_refused(study_file, tmp_path, in_process, capsys):
    file = study_file([{"name": "a", "settings": BT}])
    words = ["--study", str(file), "--run.dir", str(tmp_path / "runs")]
    assert main(words) == 0
    assert main([*words, "--optim.lr", "0.5"]) == 2
    assert "a-s0 was started with optim.lr auto, now it is 0.5" in capsys.readouterr().err
    # Where it is computed may change.
    assert main([*words, "--data.num_workers", "1"]) == 0
    assert len(in_process) == 1


def test_interrupted_runs_are_resumed_and_abandoned_ones_start_anew(
    study_file, tmp_path, in_process, train, capsys
):
    file = study_file(
        [{"name": "a", "settings": BT | {"trainer.max_epochs": 3}}, {"name": "b", "settings": BT}]
    )
    words = ["--study", str(file), "--run.dir", str(tmp_path / "runs")]
    study = load_study(str(file), None, [], str(tmp_path / "runs"))
    runner.check_settings(study)
    # a was killed after its first epoch, b before its first checkpoint.
    assert main([*study.runs[0].words, "--trainer.max_epochs", "1"]) == 0
    folder = study.folder / "a-s0"
    (folder / "summary.json").unlink()
    saved = yaml.safe_load((folder / "hparams.yaml").read_text())
    saved["trainer"]["max_epochs"] = 3
    (folder / "hparams.yaml").write_text(yaml.safe_dump(saved))
    (study.folder / "b-s0").mkdir()
    (study.folder / "b-s0" / "something").touch()
    assert main(words) == 0
    assert "--run.resume" in in_process[0]
    assert summary(folder)["epochs"] == 3
    assert "had no checkpoint yet" in capsys.readouterr().out
    (aside,) = (study.folder / "abandoned").iterdir()
    assert (aside / "something").exists()
    assert summary(study.folder / "b-s0")["status"] == "finished"


def test_a_run_that_another_process_trains_is_waited_for(study_file, tmp_path, in_process):
    file = study_file([{"name": "a", "settings": BT}])
    study = load_study(str(file), None, [], str(tmp_path / "runs"))
    runner.check_settings(study)
    folder = RunFolder(study.folder / "a-s0")
    folder.path.mkdir(parents=True)
    looks = []

    def waited(board, elsewhere=()):
        looks.append(list(elsewhere))
        if len(looks) == 3:  # the other process ends
            folder.write_summary({"status": "finished", "val/loss": 1.0})

    board_show, Board.show = Board.show, waited
    try:
        with FileLock(folder.path / ".lock"):
            assert runner.run_study(study) == 0
    finally:
        Board.show = board_show
    assert in_process == []
    assert ["a-s0"] in looks


def test_a_run_is_trained_by_one_process(train, tmp_path, capsys):
    _, folder = train("run", trainer__max_epochs=1)
    assert not RunFolder(folder).busy
    with RunFolder(folder).held():
        assert RunFolder(folder).busy
        code, _ = train("run", run__resume="run", run__name=..., trainer__max_epochs=2)
    assert code == 2
    assert "is being trained by another process" in capsys.readouterr().err
    assert train("run", run__resume="run", run__name=..., trainer__max_epochs=2)[0] == 0


def test_rows_judged_differently_are_said_to(study_file, tmp_path):
    file = study_file([{"name": name, "settings": SEGMENT} for name in ("a", "b")])
    study = load_study(str(file), None, [], str(tmp_path / "runs"))
    for name, protocol in (("a", "voc12_standard"), ("b", "voc12_seed224")):
        folder = RunFolder(study.folder / f"{name}-s0")
        folder.path.mkdir(parents=True)
        result = {"status": "finished", "test/miou": 0.5, "protocol": protocol}
        folder.write_summary(result | {"transductive": name == "b"})
    table = study_table(study).markdown()
    assert "NOT ONE PROTOCOL" in table
    assert "| b* | 1/1 | 0.500 |" in table
    assert "* transductive" in table


def test_a_figure_shows_one_kind_of_picture_of_finished_runs(study_file, tmp_path):
    names = ("a", "b", "c", "d")
    file = study_file(
        [{"name": name, "settings": SEGMENT} for name in names],
        figures=[{"picture": "predictions", "title": "P"}],
    )
    study = load_study(str(file), None, [], str(tmp_path / "runs"))
    assert study_figure(study, study.figures[0]) is None
    labels = np.zeros((6, 8), np.uint8)
    labels[0] = 255  # void, where any class may be predicted
    arrays = {
        "names": np.array(["background", "thing"]),
        "image-0": np.zeros((3, 3, 4), np.uint8),
        "labels-0": labels,
        "prediction-0": labels // 255,
    }
    for name, split, status in (
        ("a", "val", "finished"),
        ("b", "test", "finished"),
        ("c", "test", "interrupted"),
        ("d", "test", "finished"),
    ):
        folder = RunFolder(study.folder / f"{name}-s0")
        place = folder.figures / "segmentation_predictions" / split
        place.mkdir(parents=True)
        np.savez_compressed(place / "newest.npz", **arrays)
        folder.write_summary({"status": status})
    figure = study_figure(study, study.figures[0])
    assert figure is not None
    assert [axis.get_title() for axis in figure.axes] == ["image", "truth", "b", "d"]
    assert figure.axes[2].get_xlabel() == "100% right"
    assert np.asarray(figure.axes[2].images[0].get_array())[0, 0].tolist() == [128, 0, 0]


def test_a_matrix_is_put_in_two_numbers(study_file, tmp_path):
    figures = [{"picture": "matrices", "title": "M"}]
    file = study_file([{"name": "a", "settings": BT}], figures=figures)
    study = load_study(str(file), None, [], str(tmp_path / "runs"))
    folder = RunFolder(study.folder / "a-s0")
    place = folder.figures / "cross_correlation" / "train"
    place.mkdir(parents=True)
    np.savez_compressed(place / "newest.npz", matrix=[[1.0, 0.5], [0.5, 0.2]], samples=64)
    folder.write_summary({"status": "finished"})
    figure = study_figure(study, study.figures[0])
    assert figure is not None
    said = "D = 2, N = 64\ndiagonal 0.60, off-diagonal RMS 0.50"
    assert figure.axes[0].get_xlabel() == said


def test_predictions_have_the_colours_of_their_data_set(study_file, tmp_path, in_process):
    listed = f"names: [background, crop, weed]\ncolours: {HEX}\n"
    own = {
        "data.name": "mask_folder",
        "data.root": str(mask_folder(tmp_path / "own", coloured, listed, classes=3)),
        "data.batch_size": 2,
        "data.val_fraction": 0.5,
        "callbacks.segmentation_predictions.enabled": True,
    }
    figures = [{"picture": "predictions", "title": "P"}]
    file = study_file([{"name": "a", "settings": {**SEGMENT, **own}}], figures=figures)
    place = ["--run.dir", str(tmp_path / "runs")]
    assert main(["--study", str(file), *place]) == 0
    study = load_study(str(file), None, [], place[1])
    figure = study_figure(study, study.figures[0])
    assert figure is not None
    truth = np.asarray(figure.axes[1].images[0].get_array())
    assert {tuple(colour) for colour in truth.reshape(-1, 3)} == set(map(tuple, COLOURS))


def test_attention_is_drawn_a_column_a_row_and_named(study_file, tmp_path):
    rows = [{"name": name, "settings": BT} for name in ("a", "b", "c")]
    named = {"a": None, "b": "B", "c": "another name"}
    file = study_file(rows, figures=[{"picture": "attention", "title": "A", "rows": named}])
    study = load_study(str(file), None, [], str(tmp_path / "runs"))
    images = np.random.default_rng(0).integers(0, 255, (2, 3, 8, 8), np.uint8)
    for name, side in (("a", 2), ("c", 4)):
        folder = RunFolder(study.folder / f"{name}-s0")
        place = folder.figures / "attention_maps" / "val" / "block-02"
        place.mkdir(parents=True)
        # One head, which sees the upper left patch alone: all else is darkened.
        maps = np.zeros((2, 1, side, side), np.float16)
        maps[..., 0, 0] = 1
        np.savez_compressed(place / "newest.npz", images=images, maps=maps, mass=np.array(0.6))
        folder.write_summary({"status": "finished"})
    figure = study_figure(study, study.figures[0])
    assert figure is not None
    (axis,) = figure.axes
    words = {text.get_text() for text in axis.texts}
    assert {"image", "a\n2 x 2 patches", "another name\n4 x 4 patches"} < words
    shown = {
        (round(x), round(y)): image for image in axis.images for x, _, _, y in [image.get_extent()]
    }
    assert len(shown) == 6  # two images, each as it is and for two runs
    for row in (0, 1):
        whole = images[row].transpose(1, 2, 0)
        np.testing.assert_array_equal(shown[0, row].get_array(), whole)
        for column, side in ((1, 2), (2, 4)):
            seen = np.zeros((8, 8), bool)
            seen[: 8 // side, : 8 // side] = True
            pixels = np.asarray(shown[column, row].get_array())
            np.testing.assert_array_equal(pixels[~seen], (whole[~seen] * 0.35).astype(np.uint8))
            assert (pixels[seen] != (whole[seen] * 0.35).astype(np.uint8)).any()


def test_time_left(study_file, tmp_path):
    file = study_file([{"name": name, "settings": BT} for name in ("a", "b")])
    study = load_study(str(file), 2, [], str(tmp_path / "runs"))
    board = Board(study)
    assert board.seconds_left(None) is None
    folder = RunFolder(study.folder / "a-s0")
    folder.path.mkdir(parents=True)
    folder.write_summary({"status": "finished", "wall_seconds": 60.0})
    assert Board(study).seconds_left(None) == pytest.approx(180)
    longer = {"name": "b", "settings": BT | {"trainer.max_epochs": 2}}
    study = load_study(
        str(study_file([{"name": "a", "settings": BT}, longer])), 2, [], str(tmp_path / "runs")
    )
    assert Board(study).seconds_left(None) == pytest.approx(60 + 2 * 120)
    metrics = tmp_path / "metrics.csv"
    assert share_done(metrics, {}) is None
    metrics.write_text("step,epoch,train/loss\n0,0.0,1\n11,3.0,1\n")
    for key, length, share in (("max_steps", 48, 0.25), ("max_epochs", 4, 0.75)):
        (tmp_path / "hparams.yaml").write_text(f"trainer: {{{key}: {length}}}\n")
        given = {"trainer.max_epochs": "auto", f"trainer.{key}": length}
        assert share_done(metrics, given) == pytest.approx(share)
    assert share_done(metrics, {"trainer.max_epochs": "auto"}) == pytest.approx(0.75)


def test_time_left_of_runs_that_choose_their_length(study_file, tmp_path):
    own = {"name": "b", "settings": BT | {"trainer.max_epochs": "auto"}}
    none = {"task": "segmentation", "segmentation.head": "knn", "backbone.freeze": True}
    rows = [{"name": "a", "settings": BT}, own, {"name": "c", "settings": none}]
    study = load_study(str(study_file(rows)), 1, [], str(tmp_path / "runs"))
    folder = RunFolder(study.folder / "a-s0")
    folder.path.mkdir(parents=True)
    folder.write_summary({"status": "finished", "wall_seconds": 60.0})
    assert Board(study).seconds_left(None) == pytest.approx(2 * 60)


def test_the_board_shows_names_as_they_are(study_file, tmp_path):
    rows = [{"name": "plain", "settings": BT}]
    file = study_file(rows, title="[red] title", metrics={"val/loss": "[blue] loss"})
    console = Console(file=StringIO(), width=200)
    with Board(load_study(str(file), 1, [], str(tmp_path / "runs")), console):
        pass
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("plain-s0", "[red] title", "[blue] loss"):
        assert words in shown


def test_the_board_of_a_long_study_counts_the_runs_it_leaves_out(study_file, tmp_path):
    file = study_file([{"name": "a", "settings": BT}])
    study = load_study(str(file), 50, [], str(tmp_path / "runs"))
    for name in ("a-s0", "a-s1"):
        folder = RunFolder(study.folder / name)
        folder.path.mkdir(parents=True)
        folder.write_summary({"status": "finished"})
    console = Console(file=StringIO(), width=200)
    with Board(study, console):
        pass
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Not shown: 2 finished runs." in shown
    assert shown.count("waiting") == 48


# What differs between two runs of the same thing.
TIMES = ("_seconds", "images_per_second", "data_wait_share", "peak_memory_mb")


def results(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs.csv").open() as lines:
        return [
            {key: value for key, value in row.items() if not key.endswith(TIMES)}
            for row in csv.DictReader(lines)
        ]


def command(file: Path, runs: Path) -> list[str]:
    return [sys.executable, "main.py", "--study", str(file), "--run.dir", str(runs)]


@pytest.mark.slow
def test_kill_9_during_a_study_ends_in_the_same_table(study_file, tmp_path):
    rows = [{**row, "settings": dict(row["settings"])} for row in TWO_STAGES]
    rows[1]["settings"]["trainer.max_epochs"] = 15
    file = study_file(rows)
    subprocess.run(command(file, tmp_path / "whole"), check=True)
    process = subprocess.Popen(command(file, tmp_path / "killed"))
    folder = tmp_path / "killed" / "mine"
    deadline = time.monotonic() + 120
    while not (folder / "pretrained-s0" / "checkpoints" / "last.ckpt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for number in (process.pid, *map(int, children)):
        os.kill(number, signal.SIGKILL)
    process.wait()
    assert not RunFolder(folder / "pretrained-s0").finished
    subprocess.run(command(file, tmp_path / "killed"), check=True)
    log = (folder / "logs" / "pretrained-s0.log").read_text()
    assert log.count("--run.resume pretrained-s0") == 1
    assert results(folder) == results(tmp_path / "whole" / "mine")
    assert (folder / "table.md").read_text() == (tmp_path / "whole/mine/table.md").read_text()


@pytest.mark.slow
def test_two_processes_share_a_study(study_file, tmp_path):
    rows = [{**row, "settings": dict(row["settings"])} for row in TWO_STAGES]
    rows += [{"name": name, "settings": SEGMENT} for name in ("a", "b", "c")]
    file = study_file(rows)
    both = [subprocess.Popen(command(file, tmp_path / "runs")) for _ in range(2)]
    assert [process.wait(300) for process in both] == [0, 0]
    folder = tmp_path / "runs" / "mine"
    names = {"pretrained", "measured", "a", "b", "c"}
    for name in names:
        log = (folder / "logs" / f"{name}-s0.log").read_text()
        assert log.count("$ ") == 1, f"{name} was started more than once"
        assert (
            json.loads((folder / f"{name}-s0" / "summary.json").read_text())["status"] == "finished"
        )
    assert not (folder / "abandoned").exists()
    assert {row["row"] for row in results(folder)} == names


def test_learning_is_drawn_over_images_seen(study_file, tmp_path):
    names = ("one", "two", "unfinished", "silent")
    file = study_file(
        [{"name": name, "settings": BT} for name in names],
        figures=[{"picture": "learning", "title": "L"}],
    )
    study = load_study(str(file), 2, [], str(tmp_path / "runs"))
    assert study_figure(study, study.figures[0]) is None
    for name, offset in (("one", 0.0), ("two", 0.2), ("unfinished", 0.5), ("silent", None)):
        for seed in (0, 1):
            folder = RunFolder(study.folder / f"{name}-s{seed}")
            folder.path.mkdir(parents=True)
            settings = {"data": {"batch_size": 8}, "trainer": {"accumulate": 2}}
            settings["task"] = "barlow_twins"
            folder.hparams.write_text(json.dumps(settings))
            status = {"status": "interrupted" if name == "unfinished" else "finished"}
            if offset is None:
                folder.write_summary(status)
                continue
            folder.write_summary(status | {"before/val/knn_accuracy": offset})
            # Seed 1 of "two" was measured once less.
            last = "" if (name, seed) == ("two", 1) else f"9,{offset + 0.4 + seed / 10},0.7\n"
            (folder.path / "metrics.csv").write_text(
                "step,val/knn_accuracy,train/loss\n"
                f"0,{offset},1.0\n4,{offset + 0.2 + seed / 10},0.8\n{last}"
            )
    figure = study_figure(study, study.figures[0])
    assert figure is not None
    (axis,) = figure.axes
    lines = {line.get_label(): line.get_xydata() for line in axis.get_lines()}
    assert set(lines) == {"one (2 seeds)", "two (2 seeds)"}
    np.testing.assert_allclose(lines["one (2 seeds)"], [(0, 0.0), (80, 0.25), (160, 0.45)])
    np.testing.assert_allclose(lines["two (2 seeds)"], [(0, 0.2), (80, 0.45)])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_readout_of_what_is_learnt_has_a_panel(study_file, tmp_path, count):
    readouts = ["val/knn_accuracy", "val/linear_accuracy", "val/dense_knn_miou", "train/mass_lift"]
    file = study_file(
        [{"name": "one", "settings": BT}], figures=[{"picture": "learning", "title": "L"}]
    )
    study = load_study(str(file), 1, [], str(tmp_path / "runs"))
    folder = RunFolder(study.folder / "one-s0")
    folder.path.mkdir(parents=True)
    settings = {"task": "barlow_twins", "data": {"batch_size": 8}, "trainer": {"accumulate": 1}}
    folder.hparams.write_text(json.dumps(settings))
    folder.write_summary({"status": "finished"})
    values = [0.1 * number for number in range(count)]
    rows = (",".join(map(str, (step, *values))) for step in (3, 7))
    header = ",".join(("step", *readouts[:count]))
    (folder.path / "metrics.csv").write_text("\n".join((header, *rows)) + "\n")
    figure = study_figure(study, study.figures[0])
    assert figure is not None
    drawn = [axis.get_lines()[0].get_ydata()[0] for axis in figure.axes]
    assert drawn == pytest.approx(values)
    assert len({axis.get_title() for axis in figure.axes}) == count


def test_names_are_text_in_latex_and_figures(study_file, tmp_path):
    odd = "\\input{x} $a_b$ ~^ 😀 " + "y" * 200
    file = study_file(
        [{"name": "a", "label": odd, "settings": BT}, {"name": "b", "label": "_b", "settings": BT}],
        figures=[{"picture": "matrices", "title": odd}],
    )
    study = load_study(str(file), None, ["--logger.mode", "disabled"], str(tmp_path / "runs"))
    for run in study.runs:
        folder = RunFolder(study.folder / run.name)
        matrices = folder.figures / "cross_correlation" / "train"
        matrices.mkdir(parents=True)
        np.savez(matrices / "newest.npz", matrix=np.eye(4, dtype=np.float16), samples=8)
        folder.write_summary({"status": "finished", "val/loss": 1.0})
        (folder.path / "metrics.csv").write_text("step,val/loss\n0,2.0\n1,1.5\n")
    write_output(study)
    escaped = r"\textbackslash{}input\{x\} \$a\_b\$ \textasciitilde{}\textasciicircum{} 😀 yy"
    assert escaped in (study.folder / "table.tex").read_text()
    pictures = Page((study.folder / "report.html").read_text()).pictures
    assert set(pictures) == {odd, "Learning curves, first seed of every row"}
