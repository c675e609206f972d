"""Every setting has an effect where its conditions hold, and is refused where one does not."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, make_dataclass, replace
from inspect import signature
from itertools import product
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest

from config import names
from config.effective import active_settings, without_ineffective
from config.errors import ConfigError
from config.hparams import Hparams
from config.length import resolve_for_data
from config.parsing import parse
from config.resolve import resolve
from config.rules import (
    Condition,
    Either,
    Needs,
    Unless,
    get_leaf,
    metadata,
    rules_of,
    settings_of,
    unmet,
)
from config.settings_tree import Leaf, base_types, leaves, set_leaf, update
from config.types import Between, Enabled, OneOf, SomeOf
from config.validation import check
from utils.imports import load
from utils.nested import nested

LEAVES = {leaf.path: leaf for leaf in leaves(Hparams())}
# Where any other valid value will not do: what goes with it, and a value.
SPECIAL: dict[str, tuple[dict[str, Any], Any]] = {
    "data.batch_size": ({}, 64),
    "data.image_size": ({}, 96),
    "dino.global_crops_scale": ({}, [0.3, 1.0]),
    "dino.local_crops_scale": ({}, [0.1, 0.3]),
    "barlow_twins.crop_scale": ({}, [0.1, 0.9]),
    "lejepa.crop_scale": ({}, [0.1, 0.9]),
    "segmentation.loss_weights": ({}, [2.0]),
    "segmentation.attention_loss": ({"segmentation.fusion": ["fusion2"]}, 0.2),
    "segmentation.attention_loss_terms": (
        {"segmentation.fusion": ["fusion2"], "segmentation.attention_loss": 0.2},
        ["affinity"],
    ),
    "segmentation.knn.k": ({"backbone.freeze": True}, 5),
    "segmentation.knn.temperature": ({"backbone.freeze": True}, 0.1),
    "segmentation.test_stride": ({"segmentation.test_window": 64}, 48),
    "trainer.devices": ({"data.batch_size": 64}, 2),
    "trainer.num_nodes": ({"data.batch_size": 64}, 2),
    "run.resume": ({}, "somewhere"),
}


KNN = "--task segmentation --backbone.freeze true --segmentation.head knn"


def another(leaf: Leaf) -> Any:
    """A valid value that is not the default."""
    found = list(metadata(leaf.annotation))
    for extra in found:
        if isinstance(extra, OneOf | SomeOf):
            now = leaf.value if isinstance(leaf.value, list) else [leaf.value]
            first = next(name for name in extra.names if name not in (*now, "auto"))
            return [first] if isinstance(extra, SomeOf) else first
    between = next((extra for extra in found if isinstance(extra, Between)), Between(0))
    for kind in base_types(leaf.annotation):
        if get_origin(kind) is Literal:
            return next(option for option in get_args(kind) if option not in (leaf.value, "auto"))
        if kind is bool:
            return not leaf.value
        if kind in (int, float):
            start = leaf.value if isinstance(leaf.value, int | float) else between.low
            return kind(start + 1 if start + 1 <= between.high else (start + between.high) / 2)
        if get_origin(kind) is list:
            return {int: [-2], float: [0.5], str: ["x"]}[get_args(kind)[0]]
    return "elsewhere"


def satisfy(hparams: Hparams, path: str) -> None:
    """Sets other settings so that `path` has an effect, the first way that works."""
    for condition in rules_of(Hparams)[path]:
        choices = condition.conditions if isinstance(condition, Either) else (condition,)
        before = deepcopy(hparams.__dict__)
        for each in choices:
            hparams.__dict__.update(deepcopy(before))
            hold(hparams, each)
            if unmet(hparams, path) is not condition:
                break


def hold(hparams: Hparams, condition: Needs) -> None:
    satisfy(hparams, condition.path)
    value = get_leaf(hparams, condition.path)
    leaf = replace(LEAVES[condition.path], value=value, default=None)
    if isinstance(condition, Unless):
        if condition.matches(value):
            outside = next(v for v in candidates(condition.path) if not condition.matches(v))
            set_leaf(hparams, condition.path, outside)
    elif not condition.matches(value):
        wanted = condition.values[0] if condition.values else another(leaf)
        is_list = any(get_origin(kind) is list for kind in base_types(leaf.annotation))
        if is_list and not isinstance(wanted, list):
            wanted = [wanted]
        set_leaf(hparams, condition.path, wanted)


def candidates(path: str) -> list[Any]:
    """Values a setting may have, the default first."""
    leaf = LEAVES[path]
    found = [leaf.default, another(leaf)]
    for extra in metadata(leaf.annotation):
        if isinstance(extra, OneOf | SomeOf):
            found += [[name] if isinstance(extra, SomeOf) else name for name in extra.names]
    for kind in base_types(leaf.annotation):
        found += get_args(kind) if get_origin(kind) is Literal else []
        found += [[]] if get_origin(kind) is list else []
        found += {int: [0, 1, 4], float: [0.0], bool: [False, True], type(None): [None]}.get(
            kind, []
        )
    return [value for value in found if value != "auto"]


def breaks(hparams: Hparams, path: str) -> Iterator[Hparams]:
    """Yields, for each condition of `path`, settings in which it does not hold."""
    conditions = rules_of(Hparams)[path]
    for condition in conditions:
        # What breaks this one may break an earlier one too, which is then met in another way.
        for paths in (paths_of(condition), paths_of(*conditions)):
            if broken := next(broken_by(hparams, path, condition, paths), None):
                yield broken
                break
        else:
            raise AssertionError(f"{path}: nothing breaks {condition}")


def paths_of(*conditions: Condition) -> list[str]:
    """The settings that conditions look at."""
    found = (each.conditions if isinstance(each, Either) else (each,) for each in conditions)
    return list(dict.fromkeys(each.path for choices in found for each in choices))


def broken_by(
    hparams: Hparams, path: str, condition: Condition, paths: list[str]
) -> Iterator[Hparams]:
    """Yields settings that differ in `paths` alone and break this condition of `path` first."""
    for values in product(*map(candidates, paths)):
        broken = deepcopy(hparams)
        for other, value in zip(paths, values, strict=True):
            set_leaf(broken, other, value)
        if unmet(broken, path) is condition:
            yield broken


def with_value(path: str) -> tuple[Hparams, Any]:
    """Settings under which `path` has an effect, and another value for it."""
    hparams = Hparams()
    hparams.backbone.name = "vit_tiny"
    more, value = SPECIAL.get(path, ({}, None))
    satisfy(hparams, path)
    for other, wanted in more.items():
        satisfy(hparams, other)
        set_leaf(hparams, other, wanted)
    if path not in SPECIAL:
        value = another(replace(LEAVES[path], value=get_leaf(hparams, path), default=None))
    return hparams, value


@pytest.mark.parametrize("path", LEAVES)
def test_a_setting_with_an_effect_makes_another_run(path):
    hparams, value = with_value(path)
    before = active_settings(check(hparams))
    set_leaf(hparams, path, value)
    assert active_settings(check(hparams)) != before


@pytest.mark.parametrize("path", [path for path, rules in rules_of(Hparams).items() if rules])
def test_a_setting_without_effect_is_refused(path):
    hparams, value = with_value(path)
    for broken in breaks(hparams, path):
        active = active_settings(broken)
        set_leaf(broken, path, value)
        with pytest.raises(ConfigError, match=rf"--{path} .* has no effect (with|on)"):
            check_first(broken, path)
        assert active_settings(broken) == active


def check_first(hparams: Hparams, path: str) -> None:
    # Breaking a condition may leave other settings without effect too: those are put back.
    clean = without_ineffective(hparams)
    set_leaf(clean, path, get_leaf(hparams, path))
    check(clean)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("--task dino --dino.multi_crop false --dino.local_crops_number 4", "dino.multi_crop"),
        ("--task dino --dino.sharpening false --dino.teacher_temp 0.05", "dino.sharpening"),
        ("--task dino --dino.ema false --dino.momentum_teacher 0.9", "dino.ema"),
        ("--task dino --dino.centering false --dino.center_momentum 0.8", "dino.centering"),
        ("--task linear_probe --data.name cifar10 --probe.kind linear --probe.k 5", "probe.kind"),
        ("--task linear_probe --data.name cifar10 --probe.kind knn --optim.lr 1", "probe.kind knn"),
        ("--callbacks.online_probe.enabled false --probe.k 5", "online_probe.enabled"),
        ("--data.name cifar10 --callbacks.dense_knn.k 5", "with --data.name cifar10"),
        ("--task segmentation --callbacks.dense_knn.k 5", "on task segmentation"),
        (
            "--backbone.freeze true --callbacks.gradient_agreement.every_n_steps 5",
            "with --backbone.freeze true",
        ),
        (
            "--task segmentation --callbacks.gradient_agreement.every_n_steps 5",
            "on task segmentation",
        ),
        ("--probe.data.root x", "without --probe.data.name"),
        ("--backbone.freeze true --backbone.drop_path 0.1", "with --backbone.freeze true"),
        ("--trainer.max_steps 5 --trainer.max_epochs 3", "with --trainer.max_steps 5"),
        ("--trainer.tune_lr true --optim.lr 0.1", "with --trainer.tune_lr true"),
        ("--trainer.limit_val_batches 0 --trainer.val_every_n_epochs 3", "limit_val_batches 0"),
        ("--callbacks.views.enabled false --callbacks.views.num_images 3", "views.enabled true"),
        ("--callbacks.early_stopping.patience 3", "early_stopping.enabled true"),
        (
            "--callbacks.effective_receptive_field.layers blocks.0 "
            "--callbacks.effective_receptive_field.num_layers 2",
            "with --callbacks.effective_receptive_field.layers blocks.0",
        ),
        ("--logger.mode disabled --logger.project mine", "with --logger.mode disabled"),
        ("--trainer.tune_batch_size true --trainer.chunk_size 8", "tune_batch_size true"),
        ("--trainer.sync_batchnorm true", "with --trainer.devices 1"),
        ("--task segmentation --segmentation.knn.k 5", "without --segmentation.head knn"),
        (f"{KNN} --optim.lr 1", "with --segmentation.head knn"),
        (f"{KNN} --segmentation.loss dice", "with --segmentation.head knn"),
        (f"{KNN} --segmentation.fusion fusion2", "with --segmentation.head knn"),
        (f"{KNN} --trainer.max_epochs 3", "with --segmentation.head knn"),
        (f"{KNN} --data.views fixed", "with --segmentation.head knn"),
        ("--task segmentation --data.feature_cache off", "without --data.views fixed"),
        ("--task segmentation --probe.k 3", "on task segmentation (only barlow_twins, dino,"),
    ],
)
def test_combinations_that_do_nothing_are_refused_in_words(given, reason):
    with pytest.raises(ConfigError, match="has no effect") as caught:
        parse(given.split())
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        # One of two settings would do.
        (
            "--callbacks.online_probe.enabled false --callbacks.embeddings.enabled false "
            "--probe.data.name shapes",
            "without --callbacks.online_probe.enabled or --callbacks.embeddings.enabled",
        ),
        # Both at once are what takes the effect away.
        (
            "--trainer.sync_batchnorm true",
            "with --trainer.devices 1 and with --trainer.num_nodes 1",
        ),
        (
            "--backbone.freeze true --backbone.drop_path 0.1",
            "with --backbone.freeze true and without --backbone.unfreeze_last",
        ),
        # Other tasks are named where this one never reads it, and there only.
        (
            "--task lejepa --barlow_twins.projector_dim 8",
            "on task lejepa (only barlow_twins, dino_twins)",
        ),
        (
            "--task dino_twins --dino_twins.term sigreg --barlow_twins.projector_dim 8",
            "without --dino_twins.term barlow_twins",
        ),
        (
            "--data.name voc --data.val_fraction 0.3",
            "without --data.name mask_folder or image_folder",
        ),
        ("--task linear_probe --probe.kind knn --optim.lr 1", "with --probe.kind knn"),
    ],
)
def test_the_whole_reason_is_true(given, reason):
    with pytest.raises(ConfigError) as caught:
        parse(given.split())
    assert str(caught.value).endswith(f" has no effect {reason}.")


def test_alternatives_in_help_read_as_alternatives():
    assert str(Unless("a", 1) | Unless("b", 2)) == "no --a 1 or no --b 2"
    assert str(Needs("a", "x", "y") | Needs("b")) == "--a x or y or --b"


def test_names_of_fusions_and_backbones():
    command = parse(["--task", "segmentation", "--segmentation.fusion", "affinity_propagation"])
    assert command.hparams.segmentation.fusion == ["fusion2"]
    assert parse(["--data.name", "cifar10"]).hparams.backbone.name == "resnet18"
    assert parse(["--data.name", "voc"]).hparams.backbone.name == "vit_small"
    words = ["--task", "segmentation", "--segmentation.fusion", "fusion2", "affinity_propagation"]
    with pytest.raises(ConfigError, match="each of them once"):
        parse(words)


SEGMENTATION = {"task": "segmentation", "data.name": "voc"}
FUSION2 = {**SEGMENTATION, "segmentation.fusion": ["fusion2"]}
TERMS = "segmentation.attention_loss_terms"
LEJEPA = {"task": "lejepa", "lejepa.knots": 3}
TOGETHER: list[tuple[dict[str, Any], str | None]] = [
    ({"barlow_twins.crop_scale": [0.3, 0.3]}, None),
    ({"barlow_twins.crop_scale": [0.0, 1.0]}, "two shares of the image"),
    ({"barlow_twins.crop_scale": [0.5, 1.5]}, "two shares of the image"),
    ({**SEGMENTATION, "data.split": "trainaug"}, None),
    ({**SEGMENTATION, "data.split": "all_minus_val"}, "needs masks"),
    ({**SEGMENTATION, "segmentation.test_scales": []}, "expected at least one number"),
    ({**SEGMENTATION, "segmentation.test_window": 32, "segmentation.test_stride": 32}, None),
    ({**SEGMENTATION, "segmentation.loss_weights": [1.0, 2.0]}, "one weight for each loss"),
    (
        {
            **FUSION2,
            "segmentation.fusion_edges": ["tokens", "qk"],
            "segmentation.fusion_control": "uniform",
        },
        None,
    ),
    (
        {
            **FUSION2,
            "segmentation.fusion_control": "shuffled",
            "segmentation.test_scales": [1.0, 1.5],
        },
        "cannot be combined",
    ),
    ({**FUSION2, "segmentation.attention_loss": 0.1, TERMS: ["affinity"]}, None),
    (
        {
            **SEGMENTATION,
            "backbone.freeze": True,
            "segmentation.fusion": ["fusion3"],
            "segmentation.attention_loss": 0.1,
            TERMS: ["diversity"],
        },
        "nothing to train: diversity",
    ),
    ({**SEGMENTATION, "segmentation.head": "knn"}, "the backbone cannot be trained with it"),
    ({**SEGMENTATION, "segmentation.head": "knn", "backbone.freeze": True}, None),
    ({**LEJEPA, "lejepa.integration_limit": 3.0}, None),
    ({**LEJEPA, "lejepa.integration_limit": 3.1}, "lie 1.55 apart"),
    ({"trainer.chunk_size": 64, "data.batch_size": 64}, None),
    ({"trainer.devices": 2, "data.batch_size": 4}, None),
    ({"trainer.devices": 2, "data.batch_size": 2}, "at least two images each"),
    ({"trainer.devices": 2, "trainer.num_nodes": 2, "data.batch_size": 6}, "among 4 processes"),
    ({"trainer.devices": 2, "trainer.tune_lr": True}, "work on one device"),
]


@pytest.mark.parametrize(("given", "reason"), TOGETHER)
def test_what_is_possible_together(given, reason):
    hparams = update(Hparams(), nested(given), "x")
    if reason is None:
        check(hparams)
    else:
        with pytest.raises(ConfigError, match=reason):
            check(hparams)


def test_what_a_part_is_told():
    hparams = check(update(Hparams(), {"backbone": {"name": "vit_tiny", "depth": 3}}, "x"))
    told = {"depth": 3, "registers": 0, "drop_path": 0.0, "pool": "cls"}
    assert settings_of(hparams, "backbone.name") == told
    assert settings_of(hparams, "optim.name") == {}
    hparams.optim.name = "sgd"
    assert settings_of(hparams, "optim.name") == {"momentum": 0.9}
    told = settings_of(hparams, "callbacks.online_probe.enabled")
    assert set(told) == {"every_n_epochs", "num_images", "kind", "k", "temperature"}
    hparams.probe.kind = "linear"
    assert "k" not in settings_of(hparams, "callbacks.online_probe.enabled")


def test_a_condition_on_no_setting_fails_at_once():
    group = make_dataclass("Group", [("x", Annotated[int, Needs("group.y")], 3)])
    everything = make_dataclass("All", [("group", group, field(default_factory=group))])
    with pytest.raises(TypeError, match=r"group\.x has a condition on group\.y: no such setting"):
        rules_of(everything)


def test_conditions_in_a_circle_fail_at_once():
    both = [("x", Annotated[int, Needs("y")], 3), ("y", Annotated[int, Unless("x", 4)], 3)]
    with pytest.raises(TypeError, match="circle"):
        rules_of(make_dataclass("All", both))


@dataclass
class Group:
    enabled: Enabled = True
    size: int = 3


def test_a_switch_turns_its_group_off():
    everything = make_dataclass("All", [("group", Group, field(default_factory=Group))])
    settings = everything()
    assert unmet(settings, "group.size") is None
    settings.group.enabled = False
    assert str(unmet(settings, "group.size")) == "--group.enabled true"
    assert unmet(settings, "group.enabled") is None


def test_every_callback_with_settings_is_in_the_table():
    groups = set(vars(Hparams().callbacks)) - {"report", "early_stopping"}
    assert groups == set(names.CALLBACKS)


@pytest.mark.parametrize("name", names.CALLBACKS)
def test_a_callback_has_no_defaults_beside_those_of_its_settings(name):
    places = ("probe", f"callbacks.{name}")
    settings = {
        last: leaf.value
        for path, leaf in LEAVES.items()
        for place, _, last in [path.rpartition(".")]
        if place in places
    }
    for parameter in signature(load(names.CALLBACKS[name].target)).parameters.values():
        if parameter.default not in (parameter.empty, None):
            assert parameter.default == settings[parameter.name]


@pytest.mark.parametrize("task", names.TASKS)
@pytest.mark.parametrize("data", names.DATASETS)
@pytest.mark.parametrize("images", [2, 60, 135, 512, 5000, 50_000, 1_281_167])
def test_what_auto_chooses_is_possible(task, data, images):
    hparams = check(update(Hparams(), {"task": task, "data": {"name": data}}, "x"))
    for on_gpu in (True, False):
        found = resolve_for_data(resolve(hparams), images, on_gpu)
        assert check(without_ineffective(found))
        batch, epochs = found.data.batch_size, found.trainer.max_epochs
        assert 2 <= batch <= images
        assert 1 <= epochs <= 400
        assert "auto" not in [
            leaf.value
            for leaf in leaves(found)
            if unmet(found, leaf.path) is None
            and leaf.path not in ("logger.mode", "data.feature_cache", "trainer.chunk_size")
            and not leaf.path.endswith(("precision", "accelerator", "strategy", "queries"))
        ]
