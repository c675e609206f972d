"""What is given beside a command that trains nothing acts, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

from agents.build import build_callbacks
from callbacks.guard import Guard
from config import names
from config.errors import ConfigError, as_typed
from config.hparams import Hparams
from config.parsing import parse
from config.rules import metadata, unmet
from config.settings_tree import Leaf, base_types, leaves, set_leaf
from config.types import Cadence, StepCadence
from config.validation import check
from tests.config.test_fuzzed_settings import refusal

ACTIONS = ["--evaluate", "--predict", "--export"]
TASKS = ["barlow_twins", "dino", "segmentation"]


def of_task(task: str) -> Hparams:
    hparams = Hparams(task=task)
    hparams.backbone.name = "vit_small"
    return check(hparams)


def is_cadence(leaf: Leaf) -> bool:
    return any(isinstance(each, Cadence | StepCadence) for each in metadata(leaf.annotation))


def another(leaf: Leaf) -> Any:
    """A possible value that the setting does not have."""
    for kind in base_types(leaf.annotation):
        if get_origin(kind) is Literal:
            return next(option for option in get_args(kind) if option != leaf.value)
    if isinstance(leaf.value, bool):
        return not leaf.value
    if isinstance(leaf.value, list):
        return [0] if list[int] in base_types(leaf.annotation) else ["x"]
    return leaf.value / 2 if isinstance(leaf.value, float) else 2 * (leaf.value or 32)


def looked_at(hparams: Hparams) -> dict[str, Any]:
    """What the callbacks of --evaluate were told."""
    plain = (int, float, str, list, tuple, type(None))
    return {
        f"{type(callback).__name__}.{name}": value
        for callback in build_callbacks(hparams, Guard(), evaluating=True)
        for name, value in [("", ""), *vars(callback).items()]
        if isinstance(value, plain)
    }


def refused(folder: Path, action: str, task: str, *words: str) -> bool:
    settings = {"task": task, "backbone": {"name": "vit_small"}}
    (folder / "hparams.yaml").write_text(yaml.safe_dump(settings))
    more = ["--images", "."] if action == "--predict" else []
    said = refusal(parse, [action, str(folder), *more, *words])
    option = words[0].partition("=")[0]
    assert said in (None, f"{option} has no effect with {action}: nothing is trained.")
    return said is not None


@pytest.mark.parametrize("task", TASKS)
def test_a_setting_of_callbacks_reaches_what_evaluates_or_is_refused(tmp_path, task):
    acting = set()
    for leaf in leaves(of_task(task).callbacks, "callbacks."):
        if unmet(of_task(task), leaf.path) or is_cadence(leaf):
            continue
        changed = of_task(task)
        set_leaf(changed, leaf.path, another(leaf))
        same = looked_at(changed) == looked_at(of_task(task))
        words = [f"--{leaf.path}", *as_typed(another(leaf)).split()]
        if refused(tmp_path, "--evaluate", task, *words):
            assert same or leaf.path == "callbacks.attention_quality.num_images", leaf.path
        else:
            assert not same, leaf.path
            acting.add(leaf.path.removeprefix("callbacks."))
    quality = ("enabled", "num_test_images", "mass", "image_size")
    expected = {
        "barlow_twins": {"effective_rank.enabled"},
        "dino": set(),
        "segmentation": {f"attention_quality.{name}" for name in quality},
    }
    assert acting == expected[task]


@pytest.mark.parametrize("action", ACTIONS)
def test_every_cadence_is_refused(tmp_path, action):
    for task in TASKS:
        cadences = {
            leaf.path
            for leaf in leaves(of_task(task))
            if is_cadence(leaf) and unmet(of_task(task), leaf.path) is None
        }
        assert cadences
        assert all(refused(tmp_path, action, task, f"--{path}=3") for path in cadences)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(
    "words",
    [
        ["--backbone.weights", "dino"],
        ["--run.deterministic", "true"],
        ["--trainer.accumulate", "2"],
        ["--trainer.strategy", "ddp"],
        ["--backbone.drop_path", "0.1"],
    ],
)
def test_what_acts_in_a_training_alone_is_refused(tmp_path, action, words):
    assert refused(tmp_path, action, "segmentation", *words)


def test_a_switch_that_is_negated_is_refused(tmp_path):
    (tmp_path / "hparams.yaml").write_text("task: barlow_twins\n")
    with pytest.raises(ConfigError, match=r"^--callbacks\.views\.enabled has no effect with"):
        parse(["--evaluate", str(tmp_path), "--callbacks.views.noenabled"])


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(
    "words", [["--data.root", "x"], ["--segmentation.test_flip", "true"], ["--data.batch_size=4"]]
)
def test_what_acts_is_taken(tmp_path, action, words):
    assert not refused(tmp_path, action, "segmentation", *words)


def test_what_evaluates_also_looks_at_trainings():
    assert all(set(each.evaluates) <= set(each.tasks) for each in names.CALLBACKS.values())
