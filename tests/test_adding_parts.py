"""Adding a part is one file and one line of config/names.py: the examples of docs/extending.md run.

They are put, as they stand, into a copy of the project.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from agents.base import Agent
from config import names
from config.parsing import parse
from tests.conftest import PACKAGES, options, summary, tiny
from tests.pages import Page

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "extending.md"


def examples() -> Iterator[tuple[str, str]]:
    """The examples of the page: where each belongs, and its code."""
    yield from re.findall(r'^```\w+ title="(.*?)"\n(.*?)^```$', PAGE.read_text(), re.M | re.S)


def copy_with(parts: Iterator[tuple[str, str]], folder: Path) -> Path:
    """Copies the project and adds parts: whole files, and lines after a table or a class opens."""
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    for file in ("main.py", "pyproject.toml"):
        shutil.copy(ROOT / file, folder)
    for place, code in parts:
        name, _, inside = place.partition(": ")
        if not inside:
            assert not (folder / name).exists(), f"{name} is there already"
            (folder / name).write_text(code)
            continue
        text = (folder / name).read_text()
        opening = rf'^(class {inside}:\n    """.*?"""|{inside}\b[^\n]*?= [{{(])'
        if inside.startswith("above "):
            opening = rf"\n(?=@dataclass\nclass {inside.removeprefix('above ')}:)"
            code += "\n\n"
        found = re.search(opening, text, re.M | re.S)
        assert found, f"there is no {inside} in {name}"
        (folder / name).write_text(f"{text[: found.end()]}\n{code}{text[found.end() :]}")
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_with(examples(), tmp_path_factory.mktemp("project"))


def sea_floor(shapes_root: Path, root: Path) -> Path:
    """Generated images in the layout of the page's data set."""
    voc = next(shapes_root.rglob("JPEGImages")).parent
    for split in ("train", "val"):
        stems = (voc / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()
        for kind, place, suffix in (
            ("photos", "JPEGImages", ".jpg"),
            ("labels", "SegmentationClass", ".png"),
        ):
            (root / kind / split).mkdir(parents=True)
            for stem in stems:
                shutil.copy(voc / place / f"{stem}{suffix}", root / kind / split)
    return root


@pytest.fixture(scope="module")
def runs(project: Path, tmp_path_factory: pytest.TempPathFactory, shapes_root: Path) -> Path:
    """The folder of runs with the added parts, started as on command lines, all in one process."""
    folder = tmp_path_factory.mktemp("runs")
    place = {"run.dir": folder, "data.root": shapes_root}
    added = {
        "backbone.name": "mean_colours",
        "data.name": "sea_floor",
        "data.root": sea_floor(shapes_root, tmp_path_factory.mktemp("sea")),
        "segmentation.head": "two_layers",
        "segmentation.loss": "squared",
        "segmentation.width": 8,
        "optim.name": "half_momentum",
        "optim.lr": 0.1,
        "optim.weight_decay": 0,
        "optim.schedule": "halved",
        "run.name": "added",
    }
    # What else is given are settings that a known part of the kind reads.
    segments = {"task": "segmentation", **place}
    segmented = {**tiny({**segments, "backbone.name": "resnet18"}), **added}
    fused = {**tiny(segments), "segmentation.fusion": "louder", "run.name": "fused"}
    pretrains = {**tiny({"task": "lejepa", **place}), "task": "align_uniform"}
    method = {path: pretrains[path] for path in pretrains if not path.startswith("lejepa.")}
    method |= {"run.name": "method", "callbacks.online_probe.enabled": "true"}
    drawn = {"callbacks.feature_lengths.bins": 7, "callbacks.report.enabled": "true"}
    unseen = {"callbacks.feature_lengths.enabled": "false", "run.name": "unseen"}
    refused = {**fused, "segmentation.width": 8, "run.name": "refused"}
    given = (segmented, fused, method | drawn, method | unseen, refused, {**fused, **drawn})
    lines = [*map(options, given), ["--export", str(folder / "added"), "--format", "pt2"]]
    code = (
        "import json, sys; from main import main; "
        "codes = [main(argv) for argv in json.loads(sys.argv[1])]; "
        "assert codes == [0, 0, 0, 0, 2, 2, 0], codes"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(lines)], cwd=project, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for option in ("segmentation.width 8", "callbacks.feature_lengths.bins 7"):
        assert f"--{option} has no effect" in done.stderr.replace("\n", " ")
    return folder


def test_the_page_has_an_example_of_every_kind():
    shown = {place.rpartition(" ")[2] for place, _ in examples()}
    kinds = {"BACKBONES", "CALLBACKS", "DATASETS", "FUSIONS", "HEADS", "LOSSES", "TASKS"}
    assert kinds | {"OPTIMIZERS", "SCHEDULES", "ALARMS", "SegmentationHparams"} <= shown


def test_a_run_of_added_parts(runs):
    found = summary(runs / "added")
    assert found["status"] == "finished"
    assert found["readout_failures"] == {}
    assert found["train/lr"] == pytest.approx(0.05)
    settings = yaml.safe_load((runs / "added" / "hparams.yaml").read_text())
    assert settings["backbone"]["name"] == "mean_colours"
    assert settings["segmentation"]["width"] == 8


def test_an_added_fusion_learns(runs):
    assert summary(runs / "fused")["fusion/louder/factor"] != 1


def test_a_run_of_an_added_method(runs):
    found = summary(runs / "method")
    assert found["readout_failures"] == {}
    assert found["train/loss"] == pytest.approx(
        found["train/alignment"] + found["train/uniformity"], abs=1e-5
    )
    assert found["train/feature_length"] > 0
    assert "val/knn_accuracy" in found


def test_an_added_picture_with_settings(runs):
    assert list((runs / "method" / "figures" / "feature_lengths").glob("*.png"))
    settings = yaml.safe_load((runs / "method" / "hparams.yaml").read_text())
    assert settings["callbacks"]["feature_lengths"]["bins"] == 7
    report = Page((runs / "method" / "report.html").read_text())
    assert any("feature_lengths" in shown for shown in report.pictures)
    assert "train/feature_length" in report.cells
    assert not (runs / "unseen" / "figures" / "feature_lengths").exists()
    assert "train/feature_length" not in summary(runs / "unseen")


def test_the_script_of_the_page_brings_parts_from_outside(tmp_path, shapes_root):
    own = ("mean_colours.py", "sea_floor.py", "feature_lengths.py")
    for place, code in examples():
        if Path(place).name in own:
            (tmp_path / Path(place).name).write_text(code)
    (script,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    (tmp_path / "my_run.py").write_text(script)
    given = tiny({"backbone.name": "resnet18", "task": "barlow_twins", "run.name": "mine"})
    given |= {"backbone.name": "mean_colours", "data.name": "sea_floor", "data.root": "sea"}
    sea_floor(shapes_root, tmp_path / "sea")
    words = [sys.executable, "my_run.py", *options(given), "--trainer.max_epochs", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = summary(tmp_path / "runs" / "mine")
    assert found["readout_failures"] == {}
    assert found["train/feature_length"] > 0
    assert list((tmp_path / "runs" / "mine" / "figures" / "feature_lengths").glob("*.png"))


def test_the_experiment_of_the_page_is_one(tmp_path):
    (experiment,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    (tmp_path / "mine.yaml").write_text(experiment)
    assert parse(["--experiment", str(tmp_path / "mine.yaml")]).hparams.backbone.depth == 4


def test_an_added_alarm_rings(project):
    code = (
        "from callbacks.health import raised_alarms; print(raised_alarms({'features_std': 1e-5}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True
    )
    assert "FADING" in done.stdout


def test_ruff_has_nothing_to_say_of_the_examples(project):
    files = [place for place, _ in examples() if ": " not in place]
    words = [sys.executable, "-m", "ruff", "check", "--no-cache", *files]
    done = subprocess.run(words, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


class Unfinished(Agent):
    """A method that lacks two of its methods."""

    def in_words(self, summary):
        return []


def test_an_agent_that_lacks_a_method_is_named_at_the_start(monkeypatch, train, capsys):
    monkeypatch.setitem(names.TASKS, "dino", f"{__name__}:Unfinished")
    code, folder = train("bad", task="dino")
    assert code == 2
    assert "Unfinished lacks build, data" in capsys.readouterr().err.replace("\n", " ")
    assert not folder.exists()


@pytest.mark.parametrize("target", ["agents.nowhere:X", "agents.dino:Nothing"])
def test_a_line_that_names_nothing(target, monkeypatch, train, capsys):
    monkeypatch.setitem(names.TASKS, "dino", target)
    assert train("bad", task="dino")[0] == 2
    assert f"config/names.py names {target}" in capsys.readouterr().err.replace("\n", " ")
