"""What a study says of its runs: in its table, on the board, in its figures and commands."""

from __future__ import annotations

import json
import os
import re
import shlex
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from agents.commands.study import runner
from agents.commands.study.board import Board
from agents.commands.study.figures import study_figure
from agents.commands.study.output import write_output
from agents.commands.study.plan import load_study
from agents.commands.study.runs import Study
from agents.commands.study.table import study_table
from config.errors import ConfigError
from tests.pages import Page
from utils.run_folder import RunFolder
from utils.text import count

SEGMENT = {"task": "segmentation", "backbone.freeze": True}


def study(tmp_path: Path, rows: list, *words: str, seeds: int = 1, **content: Any) -> Study:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"metrics": {"m": "M"}, "rows": rows} | content))
    own = ["--logger.mode", "disabled", *words]
    return load_study(str(file), seeds, own, str(tmp_path / "runs"))


def left(of: Study, run: str, **summary: Any) -> RunFolder:
    folder = RunFolder(of.folder / run)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_summary({"status": "finished"} | summary)
    return folder


def kept(folder: RunFolder, kind: str, **arrays: Any) -> None:
    (folder.figures / kind).mkdir(parents=True)
    np.savez_compressed(folder.figures / kind / "newest.npz", **arrays)


def test_a_row_is_marked_for_any_seed_and_rounded_by_its_size(tmp_path):
    found = study(tmp_path, [{"name": "a"}, {"name": "b"}], seeds=2)
    for row, values in (("a", (123.456, 125.456)), ("b", (9.5, 9.75))):
        for seed, value in enumerate(values):
            facts = {"protocol": "p", "inference": "whole", "transductive": row == "a" and seed > 0}
            left(found, f"{row}-s{seed}", m=value, **facts)
    lines = study_table(found).markdown().splitlines()
    assert "| a* | 2/2 | 124.5 ± 1.4 |" in lines
    assert "| b | 2/2 | 9.625 ± 0.177 |" in lines
    assert "Judged by: p." in lines
    left(found, "b-s0", m=9.5, protocol="p", inference="windows of 8 px")
    assert "Judged by: p; p, windows of 8 px." in study_table(found).markdown().splitlines()


@pytest.mark.parametrize("value", ["voc12_standard", None, ["an alarm"], {"views": 1}])
def test_what_is_no_number_has_no_mean(tmp_path, value):
    found = study(tmp_path, [{"name": "a", "published": 0.5}])
    left(found, "a-s0", m=value)
    assert "| a | 1/1 | – | 0.5 | – |" in study_table(found).markdown().splitlines()


@pytest.mark.parametrize(
    ("log", "summary", "why"),
    [
        ("", {}, "not run"),
        ("working\n", {}, "see its log"),
        ("ValueError: first\nKeyError: last\nbye\n", {}, "KeyError: last"),
        ("KeyError: x\n", {"status": "failed", "reason": "so it is"}, "failed: so it is"),
        ("working\n", {"status": "interrupted"}, "interrupted"),
    ],
)
def test_a_run_that_did_not_finish_says_why(tmp_path, log, summary, why):
    found = study(tmp_path, [{"name": "a"}])
    if summary:
        left(found, "a-s0", **summary)
    if log:
        (found.folder / "logs").mkdir(parents=True, exist_ok=True)
        (found.folder / "logs" / "a-s0.log").write_text(log)
    assert f"NOT FINISHED: a-s0 ({why})." in study_table(found).markdown()


@pytest.fixture
def clock(monkeypatch):
    made = SimpleNamespace(now=1000.0)
    time = SimpleNamespace(monotonic=lambda: made.now)
    monkeypatch.setattr("agents.commands.study.board.time", time)
    return made


@pytest.mark.parametrize(("step", "left_of_it"), [(24, 90.0), (99, 0.0), (150, 0.0)])
def test_a_run_at_work_tells_how_long_the_rest_takes(tmp_path, clock, step, left_of_it):
    found = study(tmp_path, [{"name": "a"}], "--trainer.max_steps", "100", seeds=3)
    board = Board(found, Console(file=StringIO(), width=200))
    board.started(found.runs[0], "started")
    folder = left(found, "a-s0", status="running")
    folder.hparams.write_text("trainer: {max_steps: 100}\n")
    (folder.path / "metrics.csv").write_text(f"step,epoch,train/loss\n{step},1.0,1\n")
    share = min(1.0, (step + 1) / 100)
    clock.now += 120 * share
    assert board.seconds_left(share) == pytest.approx(left_of_it + 2 * 120)
    shown = Console(file=StringIO(), width=200)
    shown.print(board.live.get_renderable())
    board.show()
    shown.print(board.live.get_renderable())
    assert f"{share:.0%}" in shown.file.getvalue()  # type: ignore[attr-defined]
    # One that was stopped stays in the table as that, and is yet to be done.
    board.interrupted()
    board.show()
    assert board.states["a-s0"] == "interrupted"
    left(found, "a-s1", wall_seconds=60.0)
    board.show()
    assert board.seconds_left(None) == pytest.approx(2 * 60)


@pytest.mark.parametrize(("finished", "hidden"), [(45, 10), (3, 3), (1, 1)])
def test_a_long_board_leaves_out_what_finished_first(tmp_path, finished, hidden):
    found = study(tmp_path, [{"name": "a"}], seeds=50)
    for seed in range(finished):
        left(found, f"a-s{seed}", wall_seconds=1.0)
    console = Console(file=StringIO(), width=200)
    with Board(found, console):
        pass
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.findall(r"a-s(\d+)", text) == [str(seed) for seed in range(hidden, 50)]
    assert f"Not shown: {count(hidden, 'finished run')}." in text


def test_of_several_blocks_and_layers_the_last_is_shown_under_the_row_s_label(tmp_path):
    pictures = [{"picture": name, "rows": ["a"]} for name in ("attention", "receptive_fields")]
    found = study(tmp_path, [{"name": "a", "label": "Mine"}], figures=pictures)
    folder = left(found, "a-s0")
    images = np.zeros((1, 3, 8, 8), np.uint8)
    for block, side in (("02", 2), ("11", 4)):
        maps = np.ones((1, 1, side, side), np.float16)
        kept(folder, f"attention_maps/val/block-{block}", images=images, maps=maps, mass=0.6)
    kept(folder, "effective_receptive_field", first=np.ones((5, 5)), last=np.ones((9, 9)))
    attention, fields = (study_figure(found, figure) for figure in found.figures)
    assert attention is not None
    assert fields is not None
    words = {text.get_text() for axis in attention.axes for text in axis.texts}
    assert "Mine\n4 x 4 patches" in words
    assert fields.axes[0].get_title() == "Mine"
    assert fields.axes[0].get_xlabel().startswith("last, 9 px")


def test_predictions_are_judged_where_there_are_labels(tmp_path):
    found = study(
        tmp_path, [{"name": "a", "settings": SEGMENT}], figures=[{"picture": "predictions"}]
    )
    labels = np.array([[0, 0, 1, 255]], np.uint8)
    arrays = {"image-0": np.zeros((3, 1, 4), np.uint8), "names": np.array(["a", "b"])}
    arrays |= {"labels-0": labels, "prediction-0": np.array([[0, 1, 1, 1]], np.uint8)}
    kept(left(found, "a-s0"), "segmentation_predictions/test", **arrays)
    figure = study_figure(found, found.figures[0])
    assert figure is not None
    assert figure.axes[2].get_xlabel() == "67% right"


def test_predictions_are_shown_of_as_many_images_as_all_rows_kept(tmp_path):
    rows = [{"name": name, "settings": SEGMENT} for name in ("a", "b")]
    found = study(tmp_path, rows, figures=[{"picture": "predictions"}])
    for name, images in (("a", 3), ("b", 2)):
        arrays = {"names": np.array(["a", "b"])}
        for number in range(images):
            arrays[f"image-{number}"] = np.zeros((3, 1, 4), np.uint8)
            for part in ("labels", "prediction"):
                arrays[f"{part}-{number}"] = np.zeros((1, 4), np.uint8)
        kept(left(found, f"{name}-s0"), "segmentation_predictions/test", **arrays)
    figure = study_figure(found, found.figures[0])
    assert figure is not None
    assert len(figure.axes) == 2 * 4


def test_learning_is_shaded_from_the_least_to_the_most_of_the_seeds(tmp_path):
    found = study(tmp_path, [{"name": "a"}], seeds=3, figures=[{"picture": "learning"}])
    for seed, value in enumerate((0.25, 0.75, 0.5)):
        folder = left(found, f"a-s{seed}")
        settings = {"task": "dino", "data": {"batch_size": 8}, "trainer": {"accumulate": 1}}
        folder.hparams.write_text(json.dumps(settings))
        rows = f"step,val/knn_accuracy\n4,{value}\n9,{value}\n"
        (folder.path / "metrics.csv").write_text(rows)
    figure = study_figure(found, found.figures[0])
    assert figure is not None
    (shade,) = figure.axes[0].collections
    heights = shade.get_paths()[0].vertices[:, 1]  # type: ignore[index]
    assert (heights.min(), heights.max()) == (0.25, 0.75)


def test_a_page_counts_hours_and_draws_curves_of_finished_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    found = study(tmp_path, [{"name": "b"}, {"name": "a"}])
    assert [row.name for row in found.rows] == ["b", "a"]  # as in the file
    for name, status in (("a", "finished"), ("b", "interrupted")):
        folder = left(found, f"{name}-s0", status=status, wall_seconds=2700.0)
        (folder.path / "metrics.csv").write_text("step,val/loss\n0,2.0\n1,1.5\n")
    write_output(found)
    source = (found.folder / "report.html").read_text()
    assert "<b>1.5</b><span>hours of computing" in source
    assert list(Page(source).pictures) == ["Learning curves, first seed of every row"]
    left(found, "a-s0", status="interrupted")
    write_output(found)
    assert not Page((found.folder / "report.html").read_text()).pictures


def test_only_what_is_left_is_printed_and_goes_on_where_it_is_computed(tmp_path):
    found = study(tmp_path, [{"name": "a"}], "--data.num_workers=3", seeds=3)
    left(found, "a-s0")
    begun = left(found, "a-s1", status="interrupted")
    begun.checkpoints.mkdir()
    begun.last.touch()
    lines = [shlex.split(line)[2:] for line in found.commands_left()]
    machine = ["--logger.mode", "disabled", "--data.num_workers", "3"]
    assert [each for each in lines[0] if each not in machine] == [
        *("--run.dir", str(found.folder), "--run.resume", "a-s1")
    ]
    for line in lines:
        for option, value in (machine[:2], machine[2:]):
            assert line[line.index(option) + 1] == value
    assert len(lines) == 2
    assert lines[1] == list(found.runs[2].words)


def test_a_setting_that_a_started_run_did_not_have_is_another_setting(tmp_path):
    found = study(tmp_path, [{"name": "a"}])
    runner.check_settings(found)
    file = found.folder / "settings.yaml"
    noted = yaml.safe_load(file.read_text())
    left(found, "a-s0")
    for path in list(noted["a-s0"]):
        fewer = {"a-s0": {key: value for key, value in noted["a-s0"].items() if key != path}}
        file.write_text(yaml.safe_dump(fewer))
        if noted["a-s0"][path] is None:  # as if it were not there
            continue
        with pytest.raises(ConfigError, match=re.escape(f"started with {path} None")):
            runner.check_settings(found)


def test_what_failed_before_is_tried_again_and_what_fails_meanwhile_is_not(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    found = study(tmp_path, [{"name": "a"}, {"name": "b"}])
    runner.check_settings(found)
    file = left(found, "a-s0", status="failed", reason="of before").path / "summary.json"
    os.utime(file, (1, 1))
    started = []

    def start(command, stream, group, *tags):
        started.append(group)
        left(found, "b-s0", status="failed", reason="of another process")
        return SimpleNamespace(poll=lambda: 1)

    monkeypatch.setattr(runner, "start", start)
    assert runner.run_study(found) == 1
    assert started == ["mine/a"]
    assert "b-s0: FAILED: elsewhere: of another process" in capsys.readouterr().out
