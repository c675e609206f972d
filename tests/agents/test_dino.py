"""DINO and DINO-Twins in a real training loop."""

import math
import os
import re
import signal
from itertools import pairwise

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from agents.backbone import new_backbone
from agents.dino import DINO
from agents.dino_twins import pairs
from callbacks.interruption import Interruption
from config.announcement import choices
from config.hparams import Hparams
from config.length import resolve_for_data
from config.resolve import resolve
from datamodules.loading import Batch
from datamodules.seeding import generator
from main import main
from models.backbones.vit import ViT
from models.losses.dino import dino_loss
from models.losses.lejepa import random_directions
from tests.agents.test_barlow_twins import difference
from tests.conftest import assert_same, stopped_after, summary, weights
from tests.models.test_lejepa_loss import naive
from utils.console import console
from utils.metrics_file import read_metrics

# Adam would blow rounding differences of zero gradients up to whole steps.
EXACT = {
    "trainer__precision": "64-true",
    "optim__name": "sgd",
    "optim__lr": 0.05,
    "optim__warmup_epochs": 0,
    "dino__freeze_last_layer_steps": 0,
    "dino__head_batch_norm": False,
}
BOTH = pytest.mark.parametrize("task", ["dino", "dino_twins"])
ALL = pytest.mark.parametrize(
    ("task", "more"),
    [
        ("dino", {}),
        ("dino", {"dino__head_batch_norm": True}),
        ("dino_twins", {}),
        ("dino_twins", {"dino_twins__term": "sigreg"}),
    ],
    ids=["dino", "batch_norm", "dino_twins", "sigreg"],
)


@ALL
def test_chunks_and_one_view_at_a_time_equal_the_whole_batch_in_float64(train, task, more):
    shared = {**EXACT, **more, "task": task, "trainer__max_epochs": 1}
    _, whole = train("whole", **shared)
    for chunk in (3, 8):
        _, chunked = train(f"chunk-{chunk}", trainer__chunk_size=chunk, **shared)
        assert difference(weights(chunked), weights(whole)) < 1e-10
        one, other = (read_metrics(f / "metrics.csv") for f in (chunked, whole))
        assert one[2]["train/loss"] == pytest.approx(other[2]["train/loss"], rel=1e-6)


def test_accumulated_batches_equal_one_large_batch_in_float64(train):
    # 24 images: three steps of 8, or three steps of 2 x 4. Centre and teacher have to wait.
    shared = {**EXACT, "task": "dino", "trainer__max_epochs": 2, "dino__momentum_teacher": 0.8}
    _, whole = train("whole", **shared)
    _, accumulated = train("accumulated", data__batch_size=4, trainer__accumulate=2, **shared)
    assert summary(accumulated)["steps"] == summary(whole)["steps"] == 6
    one, other = weights(accumulated), weights(whole)
    assert float(other["center.value"].abs().max()) > 0
    assert difference(one, other) < 1e-10


@ALL
def test_k_steps_and_k_more_are_2k_steps(train, task, more):
    shared = {**more, "task": task, "backbone__drop_path": 0.3, "trainer__chunk_size": 4}
    _, whole = train("whole", **shared)
    with stopped_after(4):
        code, half = train("half", **shared)
    assert code == 130
    assert main(["--run.resume", "half", "--run.dir", str(half.parent)]) == 0
    assert_same(weights(half), weights(whole))


def test_interrupted_while_accumulating_it_finishes_the_step_first(train, monkeypatch):
    shared = {"task": "dino", "data__batch_size": 4, "trainer__accumulate": 2}
    _, whole = train("whole", **shared)
    original = Interruption.on_train_batch_end

    def interrupt(self, trainer, module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 2):
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, trainer, module, outputs, batch, batch_idx)

    monkeypatch.setattr(Interruption, "on_train_batch_end", interrupt)
    code, half = train("half", **shared)
    assert (code, summary(half)["steps"]) == (130, 5)
    monkeypatch.undo()
    assert main(["--run.resume", "half", "--run.dir", str(half.parent)]) == 0
    assert_same(weights(half), weights(whole))


def test_teacher_follows_once_per_step_and_is_what_is_kept(train):
    _, folder = train(
        "run",
        task="dino",
        data__batch_size=4,
        trainer__accumulate=3,
        trainer__max_epochs=1,
        dino__momentum_teacher=0.5,
    )
    state = weights(folder)
    rows = read_metrics(folder / "metrics.csv")
    momenta = [row["train/momentum_teacher"] for row in rows.values() if "train/lr" in row]
    assert sorted(set(momenta)) == pytest.approx([0.5, 0.75])  # two steps, cosine from 0.5 to 1
    kept = torch.load(folder / "checkpoints" / "backbone.pth", weights_only=True)
    for key, value in kept.items():
        assert torch.equal(value, state[f"teacher.backbone.net.{key}"]), key
    student = state["student.backbone.net.blocks.0.attn.qkv.weight"]
    assert not torch.equal(kept["blocks.0.attn.qkv.weight"], student)


def test_the_student_is_kept_when_asked_for_and_export_agrees(train):
    _, folder = train("run", task="dino", dino__export="student", trainer__max_epochs=1)
    kept = torch.load(folder / "checkpoints" / "backbone.pth", weights_only=True)
    assert main(["--export", "run", "--run.dir", str(folder.parent)]) == 0
    assert_same(load_file(folder / "checkpoints" / "backbone.safetensors"), kept)
    state = weights(folder)
    assert torch.equal(kept["cls_token"], state["student.backbone.net.cls_token"])


def test_weight_decay_rises_and_the_last_layer_waits(train):
    shared = {"task": "dino", "dino__norm_last_layer": "false", "optim__warmup_epochs": 0}
    _, folder = train("run", dino__freeze_last_layer_steps=6, **shared)
    decays = [
        row["train/weight_decay"]
        for row in read_metrics(folder / "metrics.csv").values()
        if "train/weight_decay" in row
    ]
    assert decays[0] == pytest.approx(0.04)
    assert all(a < b for a, b in pairwise(decays))
    assert decays[-1] < 0.4
    _, free = train("free", dino__freeze_last_layer_steps=0, **shared)
    key = "student.head.last_layer.parametrizations.weight.original1"
    frozen, start = weights(folder)[key], weights(folder)["teacher" + key[7:]]
    assert torch.equal(frozen, start)
    assert not torch.equal(weights(free)[key], frozen)


def agent_for(task="dino", **changed) -> DINO:
    from agents.build import build_agent
    from agents.sources import build_source

    hparams = Hparams(task=task)
    for path, value in changed.items():
        group, leaf = path.split("__")
        setattr(getattr(hparams, group), leaf, value)
    hparams = resolve_for_data(resolve(hparams), 512, on_gpu=False)
    return build_agent(hparams, build_source(hparams))


class StepCounter:
    """What clipping asks of Lightning's trainer."""

    global_step = 10**6


def clip_together(agent, limit: float) -> None:
    """Stands in for Lightning, whose way leads through a trainer."""
    agent.clip_gradients = lambda *_: nn.utils.clip_grad_norm_(agent.parameters(), limit)
    for parameter in agent.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None


def norm(module: nn.Module) -> float:
    """Of its gradients together."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return float(nn.utils.get_total_norm(gradients))


def test_a_last_layer_that_waits_does_not_count_in_clipping():
    agent = agent_for(dino__clip_grad=0.0, dino__freeze_last_layer_steps=2, dino__hidden_dim=16)
    agent.trainer = trainer = type("At", (), {"global_step": 1})()
    assert trainer.global_step
    clip_together(agent, 1.0)
    agent.configure_gradient_clipping(None)
    assert all(p.grad is None for p in agent.student.head.last_layer.parameters())
    assert norm(agent.student) == pytest.approx(1.0, rel=1e-3)


def test_gradients_are_clipped_tensor_by_tensor():
    agent = agent_for(dino__clip_grad=3.0, dino__hidden_dim=16)
    agent.clip_gradients = lambda *_: None
    agent.trainer = trainer = StepCounter()
    assert trainer.global_step
    for index, parameter in enumerate(agent.student.parameters()):
        parameter.grad = torch.full_like(parameter, (10.0 if index % 2 else 1.0))
        parameter.grad *= 1 / parameter.numel() ** 0.5  # norms 10 and 1
    agent.configure_gradient_clipping(None)
    norms = [float(p.grad.norm()) for p in agent.student.parameters()]
    assert norms == pytest.approx(
        [3.0 if index % 2 else 1.0 for index in range(len(norms))], rel=1e-4
    )


@pytest.mark.parametrize(("chunk", "together"), [(None, (16, 16)), (8, (8, 8)), (4, (4, 4))])
def test_how_many_images_pass_at_once(train, monkeypatch, chunk, together):
    seen, original = [], ViT.forward

    def forward(self, images, attention=None):
        if torch.is_grad_enabled():  # the student
            seen.append(tuple(images.shape[::2]))
        return original(self, images, attention)

    monkeypatch.setattr(ViT, "forward", forward)
    train("run", task="dino", trainer__max_steps=1, trainer__chunk_size=chunk or "null")
    large, small = (max(n for n, side in seen if side == s) for s in (32, 16))
    assert (large, small) == together  # 8 images in 2 global and 2 local views


def test_views_of_one_size_pass_the_backbone_together():
    agent = agent_for(dino__hidden_dim=16)
    sizes = []
    agent.student.backbone.register_forward_pre_hook(
        lambda _, inputs: sizes.append(tuple(inputs[0].shape))
    )
    views = [[torch.zeros(2, 3, side, side, dtype=torch.uint8)] for side in (64, 64, 32, 32, 32)]
    features = agent.embed(views)
    assert sizes == [(4, 3, 64, 64), (6, 3, 32, 32)]
    assert [f.shape for f in features] == [(2, 96)] * 5


def test_validation_leaves_the_centre(train):
    _, with_val = train("with", task="dino", dino__center_momentum=0.5)
    _, without = train(
        "without", task="dino", dino__center_momentum=0.5, trainer__limit_val_batches=0
    )
    assert_same(weights(with_val), weights(without))


@pytest.mark.parametrize(
    ("images", "out_dim", "momentum", "temperature"),
    [
        (1464, 1024, 0.99, 0.02),
        (20_000, 1024, 0.99, 0.02),
        (50_000, 2048, None, None),
        (118_287, 16384, None, None),
        (1_281_167, 65536, 0.996, 0.07),
    ],
)
def test_defaults_follow_the_size_of_the_data(images, out_dim, momentum, temperature):
    given = Hparams(task="dino")
    given.data.name, given.data.batch_size, given.trainer.max_epochs = "cifar10", 128, 24
    found = resolve_for_data(resolve(given), images, on_gpu=True)
    words = choices(given, found)
    assert found.dino.out_dim == out_dim
    if momentum:
        assert found.dino.momentum_teacher == pytest.approx(momentum)
        assert found.dino.teacher_temp == pytest.approx(temperature)
    else:
        assert 0.99 < found.dino.momentum_teacher < 0.996
        assert 0.02 < found.dino.teacher_temp < 0.07
    steps = 24 * (images // 128)
    assert found.dino.warmup_teacher_temp_steps == min(37500, math.ceil(0.3 * steps))
    assert found.dino.freeze_last_layer_steps == min(1250, images // 128)
    for said in (f"dino.out_dim {out_dim}", "dino.local_crop_size 16", "optim.lr 0.00035355"):
        assert said in words
    assert "dino.head_batch_norm false" in words
    assert "barlow_twins" not in words
    assert resolve_for_data(found, 500, True) == found  # nothing is left to choose
    assert choices(found, found) == ""


def test_a_run_can_be_judged_again_and_looked_into(train):
    pictures = {
        f"callbacks__{name}__enabled": "true"
        for name in ("attention_maps", "feature_maps", "views", "learning_curves")
    }
    _, folder = train("run", task="dino", trainer__max_epochs=1, **pictures)
    kinds = {path.name for path in (folder / "figures").iterdir()}
    assert kinds == {"attention_maps", "feature_maps", "views", "learning_curves"}
    assert main(["--evaluate", "run", "--run.dir", str(folder.parent)]) == 0
    found = summary(folder)
    # The last temperature: the same as in the only epoch, whose warm-up starts at it.
    assert found["evaluate/loss"] == pytest.approx(found["val/loss"], rel=1e-5)


def test_accumulation_of_the_twins_is_called_by_its_name():
    from agents.build import build_agent
    from agents.sources import build_source

    hparams = Hparams(task="dino_twins")
    hparams.trainer.accumulate = 4
    hparams = resolve_for_data(resolve(hparams), 512, on_gpu=False)
    (warning,) = build_agent(hparams, build_source(hparams)).warnings()
    assert re.search(r"not a larger batch .* --trainer.chunk_size", warning)


def test_choices_are_printed(train, monkeypatch):
    said = []
    monkeypatch.setattr(console, "info", lambda text, *values: said.append(text % values))
    train("run", task="dino", dino__out_dim=..., trainer__max_epochs=1)
    (line,) = [text for text in said if text.startswith("auto: ")]
    assert "dino.out_dim 1024, dino.head_batch_norm true, dino.teacher_temp 0.02" in line
    assert "dino.warmup_teacher_temp_steps 1," in line
    assert "dino.global_crops_scale [0.4, 1.0]" in line  # which was empty


def test_saved_settings_repeat_the_run(train):
    _, folder = train("first", task="dino", dino__out_dim=...)
    saved = yaml.safe_load((folder / "hparams.yaml").read_text())
    assert saved["dino"]["out_dim"] == 1024
    assert saved["dino"]["global_crops_scale"] == [0.4, 1.0]
    assert "barlow_twins" not in saved
    assert main(["--experiment", str(folder / "hparams.yaml"), "--run.name", "again"]) == 0
    assert_same(weights(folder.parent / "again"), weights(folder))


@BOTH
def test_mixed_precision_trains_one_view_at_a_time(train, task):
    code, folder = train(
        "amp",
        task=task,
        trainer__precision="bf16-mixed",
        trainer__chunk_size=8,
        trainer__gradient_clip=1.0,
        trainer__max_epochs=1,
    )
    assert code == 0
    assert all(torch.isfinite(value).all() for value in weights(folder).values())


@BOTH
@pytest.mark.parametrize("crutch", ["centering", "sharpening", "ema", "multi_crop"])
def test_crutches_can_be_dropped_one_by_one(train, task, crutch):
    code, folder = train(
        "run",
        task=task,
        trainer__max_epochs=1,
        dino__momentum_teacher=0.9 if crutch != "ema" else ...,
        **{f"dino__{crutch}": "false"},
    )
    assert code == 0
    state, row = weights(folder), read_metrics(folder / "metrics.csv")[2]
    assert bool(state["center.value"].abs().max() > 0) is (crutch != "centering")
    assert (row["train/teacher_temperature"] == pytest.approx(0.1)) is (crutch == "sharpening")
    assert (row["train/momentum_teacher"] == 0) is (crutch == "ema")
    student, teacher = (
        {k.partition(".")[2]: v for k, v in state.items() if k.startswith(which)}
        for which in ("student.", "teacher.")
    )
    # Statistics of BatchNorm are those of the views that each has seen.
    learnt = [name for name in student if ".running_" not in name]
    same = all(torch.allclose(student[k], teacher[k], atol=1e-7) for k in learnt)
    assert same is (crutch == "ema")
    if crutch == "multi_crop":
        saved = yaml.safe_load((folder / "hparams.yaml").read_text())
        assert saved["dino"]["global_crops_scale"] == [0.14, 1.0]


def test_pairs_are_unordered():
    assert pairs(4, "global") == [(0, 1)]
    assert pairs(4, "global_local") == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    assert pairs(4, "all") == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert pairs(2, "all") == pairs(2, "global_local") == [(0, 1)]


@pytest.mark.parametrize(
    ("term", "second"), [("barlow_twins", "barlow_twins_loss"), ("sigreg", "sigreg")]
)
def test_twins_add_up(train, term, second):
    changed = {"dino_twins__term": term, "dino_twins__beta": 0.5}
    _, folder = train("run", task="dino_twins", trainer__max_epochs=1, **changed)
    for row in read_metrics(folder / "metrics.csv").values():
        if "train/loss" in row:
            total = row["train/dino_loss"] + 0.5 * row[f"train/{second}"]
            assert row["train/loss"] == pytest.approx(total, rel=1e-5)


def test_the_second_loss_is_the_mean_over_pairs_by_hand():
    agent = agent_for(dino_twins__pairs="global_local", dino_twins__beta=0.3, task="dino_twins")
    agent.train()
    sides = (64, 64, 32)
    images = [torch.randint(0, 256, (5, 3, side, side), dtype=torch.uint8) for side in sides]
    batch = Batch(tuple([view] for view in images), torch.arange(5), ())
    targets = [torch.rand(5, int(agent.settings.dino.out_dim)).softmax(-1) for _ in range(2)]
    with torch.no_grad():
        loss, scalars = agent.student_loss(batch, targets)
        # BatchNorm's statistics are a view's own.
        z = [agent.projector(agent.student.backbone(view).pooled).double() for view in images]
    z = [(view - view.mean(0)) / (view.var(0, correction=0) + 1e-5).sqrt() for view in z]
    costs, lambd = [], float(agent.settings.barlow_twins.lambd)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        c = z[i].T @ z[j] / 5
        redundancy = c.square().sum() - c.diagonal().square().sum()
        costs.append(float((1 - c.diagonal()).square().sum() + lambd * redundancy))
    assert float(scalars["barlow_twins_loss"]) == pytest.approx(sum(costs) / 3, rel=1e-3)
    total = float(scalars["dino_loss"]) + 0.3 * sum(costs) / 3
    assert float(loss) == pytest.approx(total, rel=1e-3)


def test_the_second_loss_is_sigreg_by_hand():
    sizes = {"projector_dim": 6, "hidden_dim": 12, "slices": 4, "knots": 101}
    agent = agent_for(
        dino_twins__term="sigreg",
        dino_twins__beta=0.3,
        dino__hidden_dim=16,
        **{f"lejepa__{name}": value for name, value in sizes.items()},
        task="dino_twins",
    )
    agent.eval().double()
    batch = Batch(
        tuple(
            [torch.randint(0, 256, (5, 3, side, side), dtype=torch.uint8)] for side in (64, 64, 32)
        ),
        torch.arange(5),
        (),
    )
    targets = [torch.rand(5, 1024, dtype=torch.float64).softmax(-1) for _ in range(2)]
    with torch.no_grad():
        loss, scalars = agent.student_loss(batch, targets)
        features = [agent.student.backbone(view[0]).pooled for view in batch.views]
        logits = [agent.student.head(view) for view in features]
        directions = random_directions(6, 4, generator(0, 0)).double()
        by_hand = [naive(agent.projector(view), directions, 3.0, 1000) for view in features]
    expected = float(dino_loss(logits, targets, 0.1)) + 0.3 * sum(by_hand) / 3
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(scalars["sigreg"]) == pytest.approx(sum(by_hand) / 3, rel=1e-3)


def test_all_crutches_can_be_dropped_beside_sigreg(train, capsys):
    crutches = {f"dino__{name}": "false" for name in ("centering", "sharpening", "ema")}
    code, folder = train(
        "run",
        task="dino_twins",
        dino_twins__term="sigreg",
        trainer__max_epochs=1,
        **crutches,
    )
    assert code == 0
    saved = yaml.safe_load((folder / "hparams.yaml").read_text())
    assert saved["dino_twins"] == {"term": "sigreg", "beta": 0.05}
    assert saved["lejepa"]["projector_dim"] == 16
    assert "barlow_twins" not in saved
    assert "SIGReg" in capsys.readouterr().out


def test_another_out_dim_on_resume(train, capsys):
    _, folder = train("first", task="dino", trainer__max_epochs=1)
    words = ["--run.resume", "first", "--run.dir", str(folder.parent), "--dino.out_dim", "12"]
    assert main(words) == 2
    text = capsys.readouterr().err
    assert "center.value is (1, 24) there and (1, 12)" in text


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dino__local_crop_size": 24}, "--dino.local_crop_size 24 is not a multiple"),
        ({"dino__local_crops_scale": 0.5}, "expected two shares"),
        ({"callbacks__early_stopping__enabled": "true"}, "no effect on task dino"),
        ({"dino__out_dim": "many"}, "expected a whole number or auto"),
        ({"barlow_twins__projector_dim": 8}, "no effect on task dino"),
        ({"barlow_twins__scale": 2, "task": "dino_twins"}, "no effect on task dino_twins"),
    ],
)
def test_impossible_settings(train, capsys, changed, message):
    code, folder = train("run", **({"task": "dino"} | changed))
    assert code == 2
    assert message in capsys.readouterr().err
    assert not folder.exists()


def test_closing_words_are_of_its_numbers():
    given = Hparams(task="dino")
    given.backbone.name, given.dino.out_dim = "vit_demo", 1024
    hparams = resolve_for_data(resolve(given), 500, on_gpu=True)
    agent = DINO(new_backbone(hparams), hparams)
    numbers = {"val/loss": 4.65, "val/teacher_entropy": 3.77, "val/teacher_mean_entropy": 4.9}
    loss, teacher = agent.in_words(numbers)
    assert "4.65 (val)" in loss
    assert "6.93" in loss
    assert "one image over 43 of 1024 outputs" in teacher
    assert "a whole batch over 134" in teacher
    assert "No step" in agent.in_words({})[0]
