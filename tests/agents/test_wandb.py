"""What wandb is given, read back from what a run without a network keeps."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import wandb

from agents.wandb_run import STEP, WandbRun, key_of
from agents.wandb_start import log_table, start
from callbacks.interruption import Interruption
from config.hparams import LoggerHparams
from main import main
from tests.conftest import options, summary, tiny
from tests.wandb_files import Offline, read_offline
from utils import figures, network
from utils.logging import Chart
from utils.metrics_file import read_metrics
from utils.run_folder import RunFolder

NAME = "a <b> 'quoted' \"run\" 🙂 [x] "
KINDS = ("segmentation_predictions", "class_iou", "confusion_matrix", "attention_quality")


class Recorded(NamedTuple):
    folder: Path
    starts: list[Offline]
    said: str

    @property
    def rows(self) -> list[dict]:
        return [row for each in self.starts for row in each.rows]


class Output(io.StringIO):
    """Whose methods can be replaced, as those of a file."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, shapes_root: Path) -> Recorded:
    """A segmentation of two epochs that was continued for a third."""
    runs = tmp_path_factory.mktemp("runs")
    settings = {
        "task": "segmentation",
        "run.dir": runs,
        "run.name": NAME.ljust(180, "x"),
        "data.root": shapes_root,
        "data.val_fraction": 0.3,
        "logger.mode": "offline",
        "callbacks.report.enabled": "true",
        **{f"callbacks.{kind}.enabled": "true" for kind in KINDS},
        **{f"callbacks.{kind}.every_n_epochs": 1 for kind in KINDS},
    }
    said = Output()
    with redirect_stdout(said):
        assert main(options(tiny(settings))) == 0
        more = ["--run.resume", settings["run.name"], "--trainer.max_epochs", "3"]
        assert main([*more, "--run.dir", str(runs), "--logger.mode", "offline"]) == 0
    wandb.teardown()  # its writer is another process, which may still be writing
    folder = runs / settings["run.name"]
    return Recorded(folder, read_offline(folder), said.getvalue())


def test_everything_lies_over_the_steps_of_the_trainer(recorded):
    assert all(STEP in row for row in recorded.rows)
    for each in recorded.starts:
        assert each.metrics["*"].step_metric == STEP
    drawn = {
        file.parent.relative_to(recorded.folder / "figures").as_posix()
        for file in recorded.folder.glob("figures/**/*.png")
    }
    assert {f"{kind}/val" for kind in KINDS[:3]} < drawn
    for kind in drawn:
        files = (recorded.folder / "figures" / kind).glob("step-*.png")
        steps = {row[STEP] for row in recorded.rows if f"visuals/{kind}" in row}
        assert steps == {int(file.stem.removeprefix("step-")) for file in files}, kind


def test_the_numbers_are_those_of_the_folder(recorded):
    logged = read_metrics(recorded.folder / "metrics.csv")
    for name in {name for row in logged.values() for name in row}:
        ours = [row[name] for _, row in sorted(logged.items()) if name in row]
        theirs = [row[key_of(name)] for row in recorded.rows if key_of(name) in row]
        assert theirs[-1] == pytest.approx(ours[-1]), name
        assert set(np.round(ours, 5)) <= set(np.round(theirs, 5)), name


def test_what_is_one_of_dozens_is_not_among_the_curves(recorded):
    sections: dict[str, set[str]] = {}
    for key in {key for row in recorded.rows for key in row if "/" in key}:
        sections.setdefault(key.partition("/")[0], set()).add(key)
    assert sorted(sections) == ["test", "train", "trainer", "val", "visuals", "within"]
    assert "train/loss" in sections["train"]
    assert all(key.count("/") == 1 for name in ("test", "train", "val") for key in sections[name])
    assert any(key.startswith("within/test/iou/") for key in sections["within"])
    assert any(key.startswith("within/train/attention/block-01/") for key in sections["within"])


def test_the_best_of_the_number_that_matters_is_in_the_summary(recorded):
    for each in recorded.starts:
        assert each.metrics["val/miou"].step_metric == STEP
        values = [row["val/miou"] for row in each.rows if "val/miou" in row]
        assert each.summary["val/miou"] == {"max": max(values), "last": values[-1]}
    held = summary(recorded.folder)
    for name in ("status", "protocol", "transductive", "steps", "images_per_second", "alarms"):
        assert recorded.starts[-1].summary[name] == held[name]


def test_pictures_have_captions_and_classes_are_tables(recorded):
    shown = recorded.starts[0].media("image")
    visuals = [v for row in shown for k, v in row.items() if k.startswith("visuals/")]
    captions = [visual.get("caption", "") for visual in visuals]
    assert any("IoU by class, val images, step" in caption for caption in captions)
    overlays = [
        row["visuals/segmentation_predictions/val/overlay"]
        for row in recorded.rows
        if "visuals/segmentation_predictions/val/overlay" in row
    ]
    assert len(overlays) == 3
    assert all("of the pixels right" in text for each in overlays for text in each["captions"])
    for kind in ("class_iou", "confusion_matrix"):
        for split in ("val", "test"):
            assert f"visuals/{kind}/{split}/chart_table" in recorded.starts[0].seen
    before = next(row for row in recorded.rows if "visuals/readouts" in row)
    assert before["visuals/readouts"]["_type"] == "table-file"


def test_it_is_found_by_its_task_and_holds_its_files(recorded):
    for each in recorded.starts:
        run = each.run
        assert run.job_type == "segmentation"
        assert {"vit_demo", "shapes"} <= set(run.tags)
        assert run.display_name.startswith(NAME)
        assert len(run.display_name) == 128
        assert each.config["task"] == "segmentation"
        assert {"hparams.yaml", "environment.json", "report.html", "summary.json"} <= each.files
    (file, *_) = recorded.folder.glob("wandb/offline-run-*/files/report.html")
    assert file.read_text() == (recorded.folder / "report.html").read_text()


def test_a_run_that_went_on_is_uploaded_in_the_order_of_its_starts(recorded):
    assert len({each.run.run_id for each in recorded.starts}) == 1
    hint = [line for line in recorded.said.splitlines() if "wandb sync" in line][-1]
    words = shlex.split(hint)
    parts = sorted(recorded.folder.glob("wandb/offline-run-*"))
    assert [Path(word) for word in words[2:]] == parts
    assert len(parts) == 2


NASTY = "</td><script>alert('x')</script> \"q\" 🙂 " + "x" * 200


@pytest.fixture
def offline(tmp_path: Path) -> tuple[WandbRun, Path]:
    run = start(LoggerHparams(mode="offline"), RunFolder(tmp_path), "test", [NASTY])
    assert run is not None
    return WandbRun(run, {}), tmp_path


def test_any_class_can_be_shown_and_images_of_any_size_together(offline, caplog):
    logger, folder = offline
    images = [np.full((h, w, 3), 7, np.uint8) for h, w in ((4, 6), (6, 4))]
    masks = {"prediction": [np.ones(image.shape[:2], np.uint8) for image in images]}
    with caplog.at_level(logging.WARNING):
        logger.log_masks("overlay", images, masks, {0: "background", 1: NASTY}, ["a", NASTY], 3)
    assert "sizes do not match" not in caplog.text
    logger.log_chart("iou", Chart("t", ("class", "IoU"), [(NASTY, 0.5)], "bars"), 3)
    counts = Chart("t", ("truth", "predicted", "count"), [(NASTY, "a", 2)], "confusion")
    logger.log_chart("confusion", counts, 3)
    figure, _ = figures.grid(1, 1, title=NASTY.replace("🙂", ""))  # which the font lacks
    picture = figures.picture(figure)
    logger.log_figure("figure", picture, 3, None)
    figures.close(figure)
    logger.log_metrics({f"test/iou/{NASTY}": 0.5}, 3)
    print(NASTY)
    logger.finish({"facts": NASTY})
    wandb.teardown()
    (held,) = read_offline(folder)
    assert all(row[STEP] == 3 for row in held.rows)
    assert f"within/test/iou/{NASTY}" in held.seen
    assert held.summary["facts"] == NASTY
    assert NASTY in held.output
    assert "WARNING" not in held.output
    shown = next(row["visuals/overlay"] for row in held.rows if "visuals/overlay" in row)
    assert (shown["width"], shown["height"]) == (6, 6)
    assert shown["captions"] == ["a", NASTY]
    drawn = next(row["visuals/figure"] for row in held.rows if "visuals/figure" in row)
    assert drawn["caption"] == NASTY.replace("🙂", "")
    (kept,) = folder.glob(f"wandb/offline-run-*/files/{drawn['path']}")
    assert kept.read_bytes() == picture.png
    tables = [json.loads(file.read_text())["data"] for file in folder.rglob("*.table.json")]
    assert [[NASTY, 0.5]] in tables
    assert [[NASTY, "a", 2]] in tables
    assert held.run.tags == [NASTY[:63] + "…"]


def test_the_parts_of_a_run_are_named_in_order(offline):
    logger, folder = offline
    for stamp in ("20990101_000000", "20010101_000000"):
        (folder / "wandb" / f"offline-run-{stamp}-{logger.experiment.id}").mkdir()
        (folder / "wandb" / f"offline-run-{stamp}-other").mkdir()
    words = shlex.split(logger.finish({}).splitlines()[-1])
    stamps = [Path(word).name.split("-")[2] for word in words[2:]]
    assert len(stamps) == 3
    assert (stamps[0], stamps[2]) == ("20010101_000000", "20990101_000000")


@contextmanager
def answering(code: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def silent() -> Iterator[tuple[str, list[socket.socket]]]:
    """A service that takes connections, which it keeps, and never says a word."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", taken


@pytest.mark.parametrize(("code", "there"), [(200, True), (404, True), (401, True), (502, False)])
def test_who_answers_is_there(code, there):
    with answering(code) as address:
        assert network.answers(address) is there


def test_who_does_not_answer_is_not(monkeypatch):
    monkeypatch.setattr(network, "ANSWER_TIMEOUT", 0.2)
    with silent() as (address, taken):
        assert not network.answers(address)
        assert len(taken) == 1
    for nobody in (address, "http://nobody.invalid", "no address"):
        assert not network.answers(nobody)


def test_who_speaks_another_language_is_not(monkeypatch):
    raised: list[object] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            with server.accept()[0] as connection:
                connection.recv(10_000)
                connection.sendall(b"220 ready\r\n")

        threading.Thread(target=greet, daemon=True).start()
        assert not network.answers(f"http://127.0.0.1:{server.getsockname()[1]}")
    assert raised == []


@pytest.mark.parametrize("known", [5, "a/b", "", "x" * 65])
def test_a_damaged_id_is_named_and_another_taken(tmp_path, monkeypatch, caplog, known):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    folder = RunFolder(tmp_path)
    folder.write_environment({"wandb_id": known})
    run = start(LoggerHparams(mode="offline"), folder, "test")
    assert run is not None
    assert re.fullmatch(r"\w+", run.id)
    run.finish()
    assert "environment.json is damaged (wandb_id" in caplog.text


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("WANDB_MODE", "ofline", "WANDB_MODE is '?ofline'?: it has to be one of auto, online"),
        ("WANDB_BASE_URL", "user:secret", "WANDB_BASE_URL: .*URL"),
        ("WANDB_INIT_TIMEOUT", "secret", "WANDB_INIT_TIMEOUT: .*number"),
        (
            "WANDB_API_KEY",
            "secret" * 7 + " ",
            "wandb rejects an environment variable.*API key .*whitespace",
        ),
    ],
)
def test_variables_that_wandb_does_not_take_are_named_without_their_value(
    tmp_path, monkeypatch, name, value, told
):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    wandb.teardown()  # forgets what it read
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=told) as raised:
        start(LoggerHparams(mode="offline"), RunFolder(tmp_path), "test")
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_service_that_is_silent_is_asked_once(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 20 + "f" * 20)
    monkeypatch.setattr(network, "ANSWER_TIMEOUT", 0.2)
    wandb.teardown()  # forgets the address it knew
    with silent() as (address, taken), caplog.at_level(logging.INFO, "twinsight"):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setattr(logging.getLogger("twinsight"), "propagate", True)
        run = start(LoggerHparams(), RunFolder(tmp_path), "test")
        assert run is not None
        assert run.settings.mode == "offline"
        said = {message for name, _, message in caplog.record_tuples if name == "twinsight"}
        assert said == {f"wandb: {address} does not answer; logging offline."}
        run.finish()
        wandb.teardown()
        assert len(taken) == 1  # ours, and nothing of wandb's own
        with pytest.raises(ValueError, match=r"--logger.mode online: wandb: .* does not answer"):
            start(LoggerHparams(mode="online"), RunFolder(tmp_path), "test")


def test_a_service_that_dies_ends_no_training(train, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    original = Interruption.on_train_batch_end

    def kill(self, trainer, *rest):
        if trainer.global_step == 1:
            mine = ["pgrep", "-P", str(os.getpid()), "-x", "wandb-core"]
            service = subprocess.run(mine, capture_output=True, text=True, check=True).stdout
            os.kill(int(service), signal.SIGKILL)
            time.sleep(0.2)  # until the connection is found to be closed
        original(self, trainer, *rest)

    monkeypatch.setattr(Interruption, "on_train_batch_end", kill)
    try:
        with pytest.warns(UserWarning, match="wandb failed, training goes on: Connection"):
            code, folder = train(may_fail=True, logger__mode="offline")
    finally:
        with suppress(ConnectionError):
            wandb.teardown()  # the next run needs another service
    assert code == 0
    assert summary(folder)["readout_failures"] == {"wandb": 1}
    assert len(read_metrics(folder / "metrics.csv")) == summary(folder)["steps"] == 6
    assert "wandb sync" in capsys.readouterr().out


def test_a_table_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    over = threading.Event()
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("agents.wandb_start.FINISH_TIMEOUT", 0.1)
    monkeypatch.setattr(wandb.Run, "finish", lambda _: over.wait(60))
    began = time.monotonic()
    log_table(LoggerHparams(mode="offline"), RunFolder(tmp_path), ["a"], [["b"]], {}, "about")
    assert time.monotonic() - began < 30
    monkeypatch.undo()
    over.set()
    wandb.teardown()


def test_every_run_of_a_process_is_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 20 + "f" * 20)
    wandb.teardown()  # forgets the address it knew
    with silent() as (address, taken):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        for name in ("first", "second"):
            run = start(LoggerHparams(), RunFolder(tmp_path / name), "test")
            assert run is not None
            assert run.settings.mode == "offline"
            run.finish()
        wandb.teardown()
        assert taken == []
    assert os.environ["WANDB_MODE"] == "offline"


@pytest.mark.parametrize("settled", ["offline", "disabled"])
def test_what_wandbs_commands_have_settled_is_heeded(tmp_path, monkeypatch, said, settled):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 20 + "f" * 20)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "wandb" / "settings"
    file.parent.mkdir()
    file.write_text(f"[default]\nmode = {settled}\n")  # as `wandb offline` does
    wandb.teardown()  # forgets what it read
    with silent() as (address, taken):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        run = start(LoggerHparams(), RunFolder(tmp_path), "test")
        assert (run is None) == (settled == "disabled")
        assert f"as `wandb {settled}` settled" in "".join(said)
        asked_for = start(LoggerHparams(mode="offline"), RunFolder(tmp_path), "test")
        assert asked_for is not None
        asked_for.finish()
        wandb.teardown()
        assert taken == []


@pytest.mark.parametrize(
    ("variable", "given", "project"),
    [(None, None, "twinsight"), ("thesis", None, "thesis"), ("thesis", "mine", "mine")],
)
def test_the_project_is_that_of_the_settings_or_of_the_variable(
    tmp_path, monkeypatch, variable, given, project
):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    if variable:
        monkeypatch.setenv("WANDB_PROJECT", variable)
    wandb.teardown()  # forgets the project it knew
    run = start(LoggerHparams(project=given, mode="offline"), RunFolder(tmp_path), "test")
    assert run is not None
    assert run.settings.project == project
    run.finish()
    wandb.teardown()


def test_a_project_that_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--logger.project: Invalid project name 'a/b'"):
        start(LoggerHparams(project="a/b", mode="offline"), RunFolder(tmp_path), "test")
