"""What a setting may be, over every setting; where wrong ones are from, they are named."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import pytest

from agents.trainer import Trainer
from config.edited import lost_setting
from config.errors import ConfigError
from config.hparams import BackboneHparams, Hparams, OptimHparams
from config.lookup import CONFIG_DIR
from config.parsing import parse
from config.rules import unmet
from config.settings_tree import base_types, leaves, set_leaf
from config.validation import check, check_values
from config.yaml_files import read_yaml, write_yaml
from main import main

LEAVES = {leaf.path: leaf for leaf in leaves(Hparams())}


def holds(path: str, kind: type) -> bool:
    types = base_types(LEAVES[path].annotation)
    return kind in types or any(kind in get_args(each) for each in types if get_origin(each))


def is_list(path: str) -> bool:
    return any(get_origin(each) is list for each in base_types(LEAVES[path].annotation))


def refused(path: str, value: Any, message: str) -> None:
    hparams = Hparams()
    set_leaf(hparams, path, [value] if is_list(path) else value)
    with pytest.raises(ConfigError, match=f"^--{path} .*{message}"):
        check_values(hparams)


@pytest.mark.parametrize("path", [path for path in LEAVES if holds(path, float)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_every_number_is_finite(path, value):
    refused(path, value, "expected a finite number")


@pytest.mark.parametrize("path", [p for p in LEAVES if holds(p, float) or holds(p, int)])
@pytest.mark.parametrize(
    "value", [10**20, 10**5000, -(10**5000)], ids=["1e20", "1e5000", "-1e5000"]
)
def test_no_whole_number_is_astronomical(path, value):
    refused(path, value, "expected")


@pytest.mark.parametrize("path", [path for path in LEAVES if holds(path, str)])
@pytest.mark.parametrize("value", ["", " \t", "a\0b", "\udcff"])
def test_every_text_says_something(path, value):
    refused(path, value, "expected a (name, not an empty text|text without control characters)")


@pytest.mark.parametrize("path", LEAVES)
@pytest.mark.parametrize("value", [{}, {"a": 1}, [[1]], (), b"x", object()])
def test_no_setting_is_something_else(path, value):
    refused(path, value, "expected")


@pytest.mark.parametrize(
    "name", ["../x", "/abs", "a/b", "a\\b", ".", ".cache", "-x", "auto", "none", "run:x", "é" * 101]
)
def test_a_run_is_called_what_a_folder_can_be(name):
    refused("run.name", name, ".")
    with pytest.raises(ConfigError, match=r"--run\.name"):
        parse([f"--run.name={name}"])


def test_names_of_folders_are_free_otherwise():
    for name in ("x", "2026-01-01", "größer als 3", "a.b", "None of them"):
        assert parse(["--run.name", name]).hparams.run.name == name


@pytest.mark.parametrize("weights", ["-1", "nan", "0"])
def test_weights_of_losses_weigh(weights):
    with pytest.raises(ConfigError, match=r"--segmentation\.loss_weights"):
        parse(["--task", "segmentation", "--segmentation.loss_weights", weights])


YAML = [
    ("backbone: 3", r"backbone is a group of settings, got 3\."),
    ("task: [dino]", r"--task dino: expected one of barlow_twins, dino"),
    ("data: {split: trainaugg}", "--data.split trainaugg: .* Did you mean trainaug?"),
    ("extends: true", r"extends true: expected the name of an experiment\."),
    ("extends: [a]", "extends a: expected the name"),
    ("data:\n  batch_size: 8\n  name: voc\n  batch_size: 9", "line 4: data.batch_size .* line 2"),
    ("task: dino\ndata: {}\ntask: lejepa", "line 3: task stands in line 1 too"),
    ("run: {name: x, name: x}", "line 1: run.name stands in line 1 too"),
    ("optim: {lr: 1.0}\noptim.lr: 0.1", r"optim\.lr stands there twice"),
    ("callbacks: {views.enabled: true, views: {enabled: false}}", "callbacks.views.enabled stands"),
    ("callbacks: 1\ncallbacks.views.enabled: true", "callbacks stands there twice"),
    ("data: &a\n  name: *a", "line 1: data.name contains itself"),
    ("data: {fixed_scales: &a [1, *a]}", "data.fixed_scales contains itself"),
    ("data: " + "[" * 50, "line 1: "),
    ("data: " + "[" * 50 + "]" * 50, "data is nested too deeply"),
    ("data: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
    ("data: !!int x", "no value of its type"),
    ("run:\n  seed: " + "9" * 5000, "line 2: this is no value of its type"),
    ("run: {seed: 010}", "--run.seed 010: expected a whole number, got str"),
    ("data: {batch_size: 2:08}", "--data.batch_size 2:08: expected a whole number or auto"),
    ("data: {batch_size: '64'}", "64: expected a whole number or auto, without quotation marks"),
    ("run: {seed: 2026-01-01}", "--run.seed 2026-01-01: expected a whole number"),
    ("run: {name: !!python/name:os.sep ''}", "could not determine a constructor"),
    ("data: {batch: 3}", r"there is no setting data\.batch\. Did you mean data\.batch_size"),
    ("optim: {lr: true}", "--optim.lr true: expected a number or auto"),
    ("optim: {lr: " + "9" * 400 + "}", r"--optim.lr 1\.000E\+400: expected at most"),
    ("- a", "must hold `name: value` lines"),
    ("a: \x00", "no text"),
]


@pytest.mark.parametrize(("text", "message"), YAML, ids=[message for _, message in YAML])
def test_a_file_of_settings_is_refused_by_line_or_path(text, message, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        parse(["--experiment", str(file)])
    assert str(file) in str(caught.value)
    assert main(["--experiment", str(file)]) == 2
    assert capsys.readouterr().err == f"error: {caught.value}\n"


def test_dotted_and_nested_settings_of_files_are_the_same_settings(tmp_path):
    (tmp_path / "base.yaml").write_text("optim.lr: 1.0\noptim.weight_decay: 0.5\n")
    (tmp_path / "middle.yaml").write_text(f"extends: {tmp_path}/base.yaml\noptim: {{lr: 2.0}}\n")
    (tmp_path / "top.yaml").write_text(f"extends: {tmp_path}/middle.yaml\noptim.lr: 3.0\n")
    optim = parse(["--experiment", str(tmp_path / "top.yaml")]).hparams.optim
    assert (optim.lr, optim.weight_decay) == (3.0, 0.5)


def test_aliases_of_aliases_end(tmp_path):
    file = tmp_path / "mine.yaml"
    levels = [f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]" for n in range(12)]
    file.write_text("\n".join(["a0: &a0 x", *levels]))
    with pytest.raises(ConfigError, match="too large"):
        read_yaml(file)


def test_merge_keys_are_no_doubles_and_dates_are_texts(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: 2026-01-01\n")
    found = read_yaml(file)
    assert found == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": "2026-01-01"}


def test_none_in_a_file_is_null_where_that_is_possible(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("run: {name: None}\ndata: {root: None}\nlogger.entity: None\n")
    hparams = parse(["--experiment", str(file)]).hparams
    assert (hparams.run.name, hparams.data.root, hparams.logger.entity) == (None, None, None)


def test_a_name_of_digits_is_what_is_written(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("run: {name: 007}\noptim: {lr: 1e-3}\ntrainer: {max_epochs: 0x10}\n")
    hparams = parse(["--experiment", str(file)]).hparams
    assert (hparams.run.name, hparams.optim.lr, hparams.trainer.max_epochs) == ("007", 1e-3, 16)


def test_numbers_of_a_list_are_read_as_single_ones(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("task: lejepa\nlejepa: {crop_scale: [1e-1, 1]}")
    assert parse(["--experiment", str(file)]).hparams.lejepa.crop_scale == [0.1, 1.0]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("logger.mode", "offlin", "Did you mean offline?"),
        ("data.name", "vocc", "Did you mean voc?"),
        ("trainer.precision", 16, "expected auto or 32-true or"),
        ("optim.lr", "fast", "expected a number or auto."),
        ("optim.lr", "1e-3", "expected a number or auto, without quotation marks"),
        ("segmentation.loss_weights", [-1.0], "expected at least 0"),
    ],
)
def test_a_mistake_in_hparams_py_is_one_sentence(path, value, message, monkeypatch, capsys):
    *groups, name = path.split(".")
    group = type(getattr(Hparams(), groups[0]))
    kept = group.__init__

    def edited(self: Any, *args: Any, **kwargs: Any) -> None:
        kept(self, *args, **kwargs)
        setattr(self, name, value)

    monkeypatch.setattr(group, "__init__", edited)
    assert main([]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: config/hparams.py: --{path} ")
    assert message in told
    assert told.count("\n") == 1


def with_typo() -> Hparams:
    hparams = Hparams()
    hparams.data.batchsize = 3
    return hparams


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        (Hparams(data=3), r"data is a group of settings, got 3\."),
        (Hparams(backbone={"name": "vit_tiny"}), "backbone is a group of settings"),
        (Hparams(task=["dino"]), "--task dino: expected one of"),
        (with_typo(), r"no setting data\.batchsize\. Did you mean data\.batch_size\?"),
        (Hparams(backbone=BackboneHparams(unfreeze_last=2)), "has no effect without"),
        (Hparams(backbone=BackboneHparams(depth=10**400)), "expected at most"),
    ],
)
def test_a_notebook_is_checked_as_strictly(hparams, message):
    for take in (check, Trainer):
        with pytest.raises(ConfigError, match=message):
            take(hparams)


class Task(str, Enum):  # noqa: UP042 (a StrEnum is more of a text than some are)
    DINO = "dino"


def test_kinds_of_numbers_and_texts_become_plain_ones(tmp_path):
    hparams = Hparams(task=Task.DINO)
    hparams.optim.lr, hparams.optim.warmup_epochs = np.float64(1e-3), np.float32(0.5)
    hparams.run.seed = np.int64(3)
    hparams.data.name, hparams.logger.mode = np.str_("shapes"), np.str_("offline")
    hparams.callbacks.attention_maps.blocks = [np.int32(-2), np.int64(-1)]
    hparams.run.dir = Path("here") / "runs"
    write_yaml(asdict(check(hparams)), tmp_path / "hparams.yaml")
    expected = Hparams(task="dino")
    expected.optim.lr, expected.optim.warmup_epochs = 1e-3, 0.5
    expected.run.seed, expected.run.dir = 3, str(Path("here/runs"))
    expected.data.name, expected.logger.mode = "shapes", "offline"
    expected.callbacks.attention_maps.blocks = [-2, -1]
    assert read_yaml(tmp_path / "hparams.yaml") == asdict(check(expected))
    with pytest.raises(ConfigError, match=r"--optim\.lr .*expected a finite number"):
        check(Hparams(optim=OptimHparams(lr=np.float32("nan"))))


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What reads a command line, of which hparams.py may be edited."""
    folder = tmp_path_factory.mktemp("copied")
    for name in ("config", "utils"):
        shutil.copytree(CONFIG_DIR.parent / name, folder / name)
    shutil.copy(CONFIG_DIR.parent / "main.py", folder)
    return folder


RESTORE = "`git checkout config/hparams.py` restores the whole file"
SEED = "    seed: Annotated[int, Between(0, 2**32 - 1), OF_THE_START] = 0\n"
DIR = '    dir: str = "runs"\n'
SCALES = "field(\n        default_factory=lambda: [1.0]\n    )"
FLOAT = """        MAKES_EPOCHS,
    ] = 0.1
"""
LEJEPA = """    lejepa: Annotated[
        LeJEPAHparams, Needs("task", "lejepa") | Needs("dino_twins.term", "sigreg")
    ] = _group(LeJEPAHparams)
"""


@pytest.mark.parametrize(
    ("before", "after", "messages"),
    [
        (DIR, "    dir: str = = runs\n", ["hparams.py, line 96", "invalid syntax"]),
        (DIR, "    dir: str = runs\n", [", line 96: name 'runs' is not", "in quotation marks"]),
        (SEED, "    seed = 0\n", ["RunHparams.seed is no setting without its type (a setting"]),
        (DIR, "    dir: str\n", [" follows default argument", " (a setting is written NAME: TYPE"]),
        ("_group(DataHparams)", '"voc"', ["hparams.py: data is a group of settings, got voc."]),
        (SCALES, "[1.0]", ["for field fixed_scales", "(default_factory=lambda: [1.0, 2.0])"]),
        (SCALES, "field(default_factory=[1.0])", ["'list' object is not callable (a list is"]),
        (
            FLOAT,
            FLOAT[:-1] + ",\n",
            ["--data.val_fraction (0.1,): expected a number, got tuple (a"],
        ),
        (": Count = 3", ": Cuont = 3", ["name 'Cuont' is not defined"]),
        (
            "    batch_size: A",
            "    batchsize: A",
            ["DataHparams has no setting batch_size", RESTORE],
        ),
        (
            "    views: Annotated[L",
            "    vies: Annotated[L",
            ["data.views: no such setting", RESTORE],
        ),
        (LEJEPA, "", ["Hparams has no setting lejepa", RESTORE]),
        ("import", "\0", ["null bytes (save it as UTF-8)"]),
        ("class Hparams:", "class Settings:", ["cannot import name 'Hparams'", RESTORE]),
    ],
)
def test_what_python_says_of_hparams_py_is_one_sentence(before, after, messages, copied):
    shipped = (CONFIG_DIR / "hparams.py").read_text()
    assert before in shipped
    (copied / "config" / "hparams.py").write_text(shipped.replace(before, after, 1))
    command = [sys.executable, str(copied / "main.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for message in ["hparams.py", *messages]:
        assert message in done.stderr


def test_a_condition_on_a_setting_that_is_gone_names_it():
    with pytest.raises(AttributeError, match="freeze_epoch") as found:
        unmet(Hparams(), "backbone.freeze_epoch")
    assert "BackboneHparams has no setting freeze_epoch, which is" in lost_setting(found.value)


def test_settings_that_are_gone_are_asked_for(copied):
    (copied / "config" / "hparams.py").unlink()
    done = subprocess.run([sys.executable, str(copied / "main.py")], capture_output=True, text=True)
    assert done.stderr.startswith("error: config/hparams.py: No module named 'config.hparams' (")
    assert RESTORE in done.stderr
