"""A resumed run obeys what it is told, or refuses it."""

from __future__ import annotations

import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import agents.dino
from agents.lightning import lightning_trainer
from agents.optimizers import keep_own_settings
from callbacks.early_stopping import early_stopping
from config import names
from config.effective import active_settings
from config.errors import ConfigError
from config.hparams import Hparams, OptimHparams
from config.length import resolve_for_data
from config.resolve import resolve
from config.rules import metadata, unmet
from config.saved_settings import check_kept
from config.settings_tree import leaves, set_leaf
from config.types import Kept
from main import main
from tests.config.test_rules import SPECIAL, another, satisfy
from tests.conftest import assert_same, options, parsed, stopped_after, summary, weights
from utils.metrics_file import read_metrics

KEPT = {
    leaf.path: leaf
    for leaf in leaves(Hparams())
    if any(isinstance(extra, Kept) for extra in metadata(leaf.annotation))
}
# Of every setting of the optimizer and its schedule a first value and another.
OPTIM: dict[str, tuple[Any, Any]] = {
    "lr": (0.01, 0.002),
    "weight_decay": (0.05, 0.3),
    "final_weight_decay": (0.4, 0.7),
    "momentum": (0.9, 0.5),
    "schedule": ("cosine", "poly"),
    "warmup_epochs": (1.0, 0.5),
    "final_lr_ratio": (0.001, 0.2),
}
# And of DINO's own schedules.
DINO: dict[str, tuple[Any, Any]] = {
    "momentum_teacher": (0.9, 0.6),
    "teacher_temp": (0.04, 0.06),
    "warmup_teacher_temp": (0.03, 0.05),
    "warmup_teacher_temp_steps": (4, 5),
}
TASKS: dict[str, dict[str, Any]] = {
    "segmentation": {"segmentation__head_lr_multiplier": 3.0, "data__batch_size": 6},
    "linear_probe": {"backbone__patch_size": 8},
}


def groups(folder: Path) -> list[dict[str, Any]]:
    """The settings of the optimizer's groups in the last checkpoint."""
    (state,) = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)[
        "optimizer_states"
    ]
    return [{k: v for k, v in group.items() if k != "params"} for group in state["param_groups"]]


def resume(folder: Path, **changed: Any) -> int:
    words = {key.replace("__", "."): value for key, value in changed.items()}
    return main(["--run.resume", folder.name, "--run.dir", str(folder.parent), *options(words)])


def schedule_settings(task: str, optimizer: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two values of all that says at which rates a run trains."""
    given = parsed(["--task", task, "--optim.name", optimizer])
    every = {f"optim.{name}": pair for name, pair in OPTIM.items()}
    every |= {f"dino.{name}": pair for name, pair in DINO.items()}
    pairs = {path: pair for path, pair in every.items() if unmet(given, path) is None}
    return {p: first for p, (first, _) in pairs.items()}, {p: new for p, (_, new) in pairs.items()}


def test_every_setting_of_the_optimizer_is_tried():
    settings = {leaf.path for leaf in leaves(OptimHparams())}
    assert settings == {*OPTIM, "name"}


def combinations() -> list[Any]:
    """Every task with every optimizer; those that differ in both from others are slow."""
    return [
        pytest.param(
            task,
            optimizer,
            marks=() if "adamw" in optimizer or "barlow" in task else pytest.mark.slow,
        )
        for task in names.TASKS
        for optimizer in names.OPTIMIZERS
    ]


@pytest.mark.parametrize(("task", "optimizer"), combinations())
def test_a_resumed_run_trains_at_the_rates_of_its_new_settings(train, task, optimizer):
    before, after = schedule_settings(task, optimizer)
    shared = {"task": task, "optim__name": optimizer, **TASKS.get(task, {})}

    def settings(given: dict[str, Any], epochs: int) -> dict[str, Any]:
        words = {path.replace(".", "__"): value for path, value in given.items()}
        return {**shared, **words, "trainer__max_epochs": epochs}

    assert train("resumed", **settings(before, 1))[0] == 0
    code, new = train("new", **settings(after, 3))
    assert code == 0
    resumed = new.parent / "resumed"
    done, of_the_start = summary(resumed)["steps"], groups(resumed)
    assert resume(resumed, **settings(after, 3)) == 0

    # Rates are a function of settings and step: those of a run that had them from the start.
    assert groups(resumed) == groups(new) != of_the_start
    assert rates(resumed, done) == rates(new, done)


def rates(folder: Path, first: int) -> list[dict[str, float | None]]:
    """What follows a schedule, from a step on."""
    rows = read_metrics(folder / "metrics.csv")
    followed = ("lr", "weight_decay", "momentum_teacher", "teacher_temperature")
    assert "train/lr" in rows[first]
    return [{k: rows[n].get(f"train/{k}") for k in followed} for n in sorted(rows) if n >= first]


def test_more_epochs_have_no_stale_first_step(train):
    shared = {"optim__schedule": "cosine", "optim__warmup_epochs": 0, "optim__lr": 0.01}
    _, short = train("short", **shared, trainer__max_epochs=1)
    _, whole = train("whole", **shared, trainer__max_epochs=3)
    assert resume(short, trainer__max_epochs=3) == 0
    assert rates(short, 3) == rates(whole, 3)


def test_in_the_middle_of_an_epoch_too(train):
    constant = {"optim__schedule": "constant", "optim__warmup_epochs": 0, "optim__lr": 0.01}
    with stopped_after(2, signal.SIGTERM):
        code, folder = train("half", **constant)
    assert code == 130
    assert resume(folder, optim__lr=0.002) == 0
    rows = read_metrics(folder / "metrics.csv")
    found = [rows[step]["train/lr"] for step in range(6)]
    assert found == pytest.approx([0.01] * 2 + [0.002] * 4)


def test_a_lower_rate_goes_on_after_a_loss_that_is_no_number(train, capsys):
    _, folder = train("run", optim__name="sgd", optim__lr=1e-3, trainer__max_epochs=1)
    assert resume(folder, optim__lr=1e30, trainer__max_epochs=3) == 1
    assert "--optim.lr LOWER" in capsys.readouterr().out
    assert resume(folder, optim__lr=1e-3) == 0
    assert summary(folder)["status"] == "finished"
    assert all(group["initial_lr"] == 1e-3 for group in groups(folder))


@pytest.mark.parametrize("path", KEPT)
def test_what_a_run_keeps_is_refused(path):
    hparams, (also, value) = Hparams(), SPECIAL.get(path, ({}, another(KEPT[path])))
    satisfy(hparams, path)
    for other, needed in also.items():
        set_leaf(hparams, other, needed)
    hparams = resolve_for_data(resolve(hparams), 1000, on_gpu=False)
    saved = active_settings(hparams)
    check_kept(hparams, saved)
    set_leaf(hparams, path, value)
    with pytest.raises(ConfigError, match=f"--{path} .*: a resumed run keeps .* because"):
        check_kept(hparams, saved)
    check_kept(hparams, {})  # an older version's, which did not know it


def test_refused_before_anything_is_written(train, capsys):
    _, folder = train("run", trainer__max_steps=4)
    files = ("hparams.yaml", "metrics.csv", "summary.json", "checkpoints/last.ckpt")
    before = [(folder / file).read_bytes() for file in files]
    for changed, words in (
        ({"optim__name": "lars"}, "--optim.name lars: a resumed run keeps adamw, because"),
        ({"data__batch_size": 4}, "--data.batch_size 4: a resumed run keeps 8, because"),
        ({"trainer__accumulate": 2}, "--trainer.accumulate 2: a resumed run keeps 1, because"),
        ({"trainer__devices": 2}, "--trainer.devices 2: a resumed run keeps 1, because"),
        ({"trainer__max_steps": 3}, "--trainer.max_steps 3 would end the run at step 3, and 4 are"),
        (
            {"trainer__max_steps": "null", "trainer__max_epochs": 1},
            "--trainer.max_epochs 1 would end the run at step 3, and 4 are done",
        ),
        ({"trainer__tune_lr": "true"}, "--trainer.tune_lr true has no effect"),
    ):
        capsys.readouterr()
        assert resume(folder, **changed) == 2
        assert words in capsys.readouterr().err
        assert before == [(folder / file).read_bytes() for file in files]


def test_a_run_in_which_other_parameters_decayed(train, capsys):
    _, folder = train("run", trainer__max_epochs=1)
    file = folder / "checkpoints" / "last.ckpt"
    saved = torch.load(file, weights_only=True)
    decayed, others = saved["optimizer_states"][0]["param_groups"][:2]
    sizes = [len(group["params"]) for group in saved["optimizer_states"][0]["param_groups"]]
    others["params"].append(decayed["params"].pop())
    torch.save(saved, file)
    assert resume(folder, trainer__max_epochs=2) == 2
    said = capsys.readouterr().err
    moved = [sizes[0] - 1, sizes[1] + 1, *sizes[2:]]
    assert f"remembers {' + '.join(map(str, moved))} parameters" in said
    assert f"this version have {' + '.join(map(str, sizes))}: what is trained" in said
    assert summary(folder)["status"] == "failed"


def test_results_whose_checkpoints_are_gone_are_not_removed(train, capsys):
    _, folder = train("run", trainer__max_epochs=1)
    results = [folder / name for name in ("metrics.csv", "summary.json")]
    before = [file.read_bytes() for file in results]
    for file in (folder / "checkpoints").iterdir():
        file.unlink()
    assert resume(folder, trainer__max_epochs=2) == 2
    assert "its checkpoints are gone" in capsys.readouterr().err
    assert before == [file.read_bytes() for file in results]


def test_a_finished_run_is_as_long_as_it_is(train):
    _, folder = train("run", trainer__max_epochs=1)
    before = weights(folder)
    assert resume(folder) == 0
    assert_same(weights(folder), before)


def test_other_images_than_those_it_was_started_with(train, image_folder, capsys):
    shared = {"data__name": "image_folder", "data__root": image_folder, "data__val_fraction": 0}
    _, folder = train("run", **shared, data__batch_size=4)
    (image_folder / "one_more.png").write_bytes((image_folder / "00.png").read_bytes())
    assert resume(folder, trainer__max_epochs=4) == 2
    assert "started with 20 training images, and there are 21 now" in capsys.readouterr().err


def test_a_probe_that_trained_nothing_has_nothing_to_go_on_from(train, capsys):
    shared = {"task": "linear_probe", "probe__kind": "knn", "backbone__patch_size": 8}
    code, folder = train("knn", **shared, trainer__max_epochs=...)
    assert code == 0
    assert resume(folder, probe__kind="both") == 2
    assert "trained nothing" in capsys.readouterr().err


@pytest.mark.parametrize("saved_as", [torch.channels_last, torch.contiguous_format])
def test_moments_lie_as_their_parameters_do(saved_as):
    """Else a run that was begun on a CPU would fail on a card, where steps are fused."""
    layouts = {torch.channels_last, torch.contiguous_format}
    (other,) = layouts - {saved_as}
    here, there = (
        nn.Conv2d(3, 8, 3).to(memory_format=layout)  # type: ignore[call-overload]
        for layout in (other, saved_as)
    )
    own, saved = (torch.optim.AdamW(network.parameters()) for network in (here, there))
    there(torch.randn(2, 3, 8, 8)).sum().backward()
    saved.step()
    own.register_load_state_dict_pre_hook(keep_own_settings)
    own.load_state_dict(saved.state_dict())
    for parameter, before in zip(here.parameters(), there.parameters(), strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            assert own.state[parameter][name].stride() == parameter.stride()
            assert torch.equal(own.state[parameter][name], saved.state[before][name])
        assert torch.equal(own.state[parameter]["step"], saved.state[before]["step"])


def test_a_deterministic_run_leaves_the_next_one_alone():
    hparams = resolve_for_data(resolve(Hparams()), 512, on_gpu=False)
    hparams.trainer.precision = "32-true"
    for deterministic in (True, False):
        hparams.run.deterministic = deterministic
        lightning_trainer(hparams, torch.device("cpu"))
        assert torch.are_deterministic_algorithms_enabled() is deterministic


def test_patience_is_that_of_the_settings():
    saved = early_stopping("val/loss", "min", patience=50)
    saved.wait_count = 7
    resumed = early_stopping("val/loss", "min", patience=3)
    assert resumed.state_key == saved.state_key
    resumed.load_state_dict(saved.state_dict())
    assert (resumed.patience, resumed.wait_count) == (3, 7)


def test_nobody_is_advised_to_add_what_was_switched_off(train):
    _, folder = train(trainer__max_epochs=1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert resume(folder, trainer__max_epochs=2, callbacks__health__enabled="false") == 0
    assert not [each for each in seen if "add the following callbacks" in str(each.message)]


@pytest.mark.parametrize(
    ("task", "changed"),
    [
        ("barlow_twins", {"barlow_twins__scale": 100.0}),
        ("barlow_twins", {"barlow_twins__loss": "vicreg", "barlow_twins__variance_weight": 1e4}),
        ("segmentation", {"segmentation__protocol": "voc12_seed224"}),
    ],
)
def test_what_was_measured_otherwise_is_no_best_to_be_beaten(train, recwarn, task, changed):
    stop = {"callbacks__early_stopping__enabled": "true", "callbacks__early_stopping__patience": 2}
    _, folder = train(task=task, trainer__max_epochs=1, **stop)
    checkpoints = folder / "checkpoints"
    last = torch.load(checkpoints / "last.ckpt", weights_only=True)
    unbeaten = torch.tensor(9.0 if task == "segmentation" else -9.0)
    for state in last["callbacks"].values():
        if state.get("best_model_score") is not None:
            best = {state["best_model_path"]: unbeaten}
            state |= {"best_model_score": unbeaten, "best_k_models": best}
        if "best_score" in state:
            state["best_score"] = unbeaten
    (checkpoints / "last.ckpt").unlink()  # which is a name of the best as well
    torch.save(last, checkpoints / "last.ckpt")

    def best_step() -> int:
        return int(torch.load(checkpoints / "best.ckpt", weights_only=True)["global_step"])

    first = best_step()
    assert resume(folder, trainer__max_epochs=2, optim__lr=1e-3) == 0
    assert best_step() == first
    assert not any("do not compare" in str(each.message) for each in recwarn)
    assert resume(folder, trainer__max_epochs=3, **changed) == 0
    assert best_step() == 3 * first
    said = next(str(each.message) for each in recwarn if "do not compare" in str(each.message))
    assert f"with another --{next(iter(changed)).replace('__', '.')}" in said


def test_a_run_that_stops_validating_is_not_judged_by_its_best_of_before(train, capsys):
    _, folder = train(task="segmentation", trainer__max_epochs=1)
    best = folder / "checkpoints" / "best.ckpt"
    assert resume(folder, trainer__max_epochs=2, trainer__limit_val_batches=0) == 2
    assert f"error: Validations of this run have chosen {best}" in capsys.readouterr().err
    best.rename(folder / "first.ckpt")
    assert resume(folder, trainer__max_epochs=2, trainer__limit_val_batches=0) == 0
    assert not best.exists()


@pytest.mark.parametrize(
    ("task", "changed", "words"),
    [
        ("dino", {"dino.out_dim": 20}, "--dino.out_dim 24 (not 20) as"),
        (
            "dino_twins",
            {"dino_twins.term": "sigreg"},
            "--dino_twins.term barlow_twins (not sigreg)",
        ),
        ("segmentation", {"segmentation.head": "fcn"}, "--segmentation.head setr_naive (not fcn)"),
    ],
)
def test_settings_of_another_network_are_named(train, capsys, task, changed, words):
    _, folder = train(task=task, trainer__max_epochs=1)
    given = {**changed, "trainer.max_epochs": 2, "optim.lr": 0.01, "data.num_workers": 1}
    assert resume(folder, **{path.replace(".", "__"): value for path, value in given.items()}) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "is of another architecture" in said
    assert words in said
    assert "max_epochs" not in said
    assert "optim.lr" not in said
    assert "num_workers" not in said


def test_a_run_resumed_without_a_centre_subtracts_none(train, monkeypatch):
    _, folder = train(task="dino", trainer__max_epochs=1)
    original, centers = agents.dino.teacher_targets, []

    def targets(logits, center, temperature):
        centers.append(center.abs().max().item())
        return original(logits, center, temperature)

    monkeypatch.setattr(agents.dino, "teacher_targets", targets)
    assert resume(folder, trainer__max_epochs=2) == 0
    assert all(centers)
    centers.clear()
    assert resume(folder, trainer__max_epochs=3, dino__centering="false") == 0
    assert centers
    assert not any(centers)


@pytest.mark.parametrize("part", ["optimizer_states", "loops"])
def test_a_checkpoint_that_was_stripped_is_not_gone_on_from(train, capsys, part):
    _, folder = train(trainer__max_epochs=1)
    file = folder / "checkpoints" / "last.ckpt"
    saved = torch.load(file, weights_only=True)
    saved[part] = type(saved[part])()
    file.unlink()  # which is a name of the best as well
    torch.save(saved, file)
    assert resume(folder, trainer__max_epochs=2) == 2
    assert f"last.ckpt has no {part}, without which a run does not go" in capsys.readouterr().err
    assert main(["--evaluate", "run", "--run.dir", str(folder.parent)]) == 0


@pytest.mark.parametrize("wrong", ["three", -3, None, {}])
def test_a_position_that_is_none_is_said_before_training(train, capsys, wrong):
    _, folder = train(trainer__max_epochs=1)
    file = folder / "checkpoints" / "last.ckpt"
    saved = torch.load(file, weights_only=True)
    saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"] = wrong
    saved["loops"]["fit_loop"]["epoch_progress"]["total"]["ready"] = wrong
    file.unlink()
    torch.save(saved, file)
    before = (folder / "hparams.yaml").read_bytes()
    assert resume(folder, trainer__max_epochs=2) == 2
    said = capsys.readouterr().err
    assert f"{file} is damaged: its loops.fit_loop.epoch_loop.batch_progress.current" in said
    assert f"or start a new run with --backbone.weights {file}." in said
    assert (folder / "hparams.yaml").read_bytes() == before


@pytest.mark.parametrize("changed", [{"backbone__depth": 3}, {"run__seed": 4}])
def test_the_best_checkpoint_of_another_run_is_refused_before_training(train, capsys, changed):
    settings = {"task": "segmentation", "data__val_fraction": 0.3, "trainer__max_epochs": 1}
    _, other = train("other", **settings, **changed)
    _, folder = train(**settings)
    best, last = (folder / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    best.unlink()
    best.write_bytes((other / "checkpoints" / "best.ckpt").read_bytes())
    before = last.read_bytes()
    capsys.readouterr()
    assert resume(folder, trainer__max_epochs=2, optim__lr=0) == 2
    said = capsys.readouterr().err
    assert (
        f"{best} belongs to another run than last.ckpt: put the right one back, or remove" in said
    )
    assert last.read_bytes() == before
    best.unlink()
    # Worse than what was removed, or as good: the best there is.
    assert resume(folder, trainer__max_epochs=2, optim__lr=0) == 0
    assert best.exists()
