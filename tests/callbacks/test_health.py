"""Every alarm is rung by a run that goes wrong in its way."""

import itertools
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

import agents.barlow_twins
import callbacks.throughput
from callbacks.health import ALARMS, first_judgement, raised_alarms
from datamodules.loading import BatchLoader
from main import main
from models.measures.feature_statistics import effective_rank, mean_cosine, mean_std
from tests.conftest import callback_of, float16_trainer, summary
from utils.metrics_file import read_metrics

WATCHED = {"callbacks__health__every_n_steps": 1, "trainer__max_epochs": 12}
DINO = {"task": "dino", "dino__head_batch_norm": "false", **WATCHED}

# Weights that decay to nothing say the same of every image.
DECAYING = {"optim__lr": 0.01, "optim__weight_decay": 90}

HEALTHY = {
    "mean_cosine": 0.6,
    "rank_me": 60.0,
    "largest_rank": 128.0,
    "teacher_entropy": 3.0,
    "teacher_mean_entropy": 6.0,
    "chance_level": math.log(1024),
    "diagonal_mean": 0.7,
    "grad_norm": 2.0,
    "largest_grad_norm": 9.0,
    "overflows": 0.0,
    "loss_scale": 65536.0,
    "data_wait_share": 0.1,
    "gradient_cosine_batch": 0.05,
    "gradient_cosine_most": 0.2,
    "images_a_step": 256.0,
    "val/dense_knn_miou/before": 0.10,
    "val/dense_knn_miou/now": 0.085,  # less, and within the scatter of so small a number
    "val/knn_accuracy/before": 0.5,
    "val/knn_accuracy/now": 0.42,
}


def rung(folder):
    return " | ".join(summary(folder)["alarms"])


def test_a_healthy_reading_rings_nothing_and_a_missing_one_neither():
    assert raised_alarms(HEALTHY) == {}
    assert raised_alarms({}) == {}
    assert raised_alarms(HEALTHY | {"mean_cosine": math.nan}) == {}


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("collapse", DECAYING, "nearly the same features"),
        ("few_dimensions", DECAYING, "DIMENSIONS LOST: the features use 1."),
        (
            "uniform_output",
            {**DINO, "dino__sharpening": "false", "dino__momentum_teacher": 0.7},
            "output is uniform whatever",
        ),
        (
            "one_output",
            {**DINO, "dino__centering": "false", "dino__ema": "false", "optim__lr": 0.01},
            "every image the same few outputs",
        ),
        (
            "views_disagree",
            {"barlow_twins__lambd": 100, "optim__lr": 0.01, "trainer__max_epochs": 24},
            "NOTHING LEARNT",
        ),
    ],
)
def test_what_goes_wrong_is_said(train, capsys, name, changed, words):
    code, folder = train("run", **{**WATCHED, **changed})
    assert code == 0
    assert words in rung(folder)
    assert "What usually helps" in rung(folder) or name == "views_disagree"
    assert words.split(":")[0][:20] in " ".join(capsys.readouterr().out.replace("│", "").split())
    assert name in ALARMS


def test_gradients_that_vanish_and_jump(train, monkeypatch):
    original, calls = agents.barlow_twins.barlow_twins_loss, []

    def poisoned(*arguments):
        calls.append(1)
        factor = 1e-20 if factors == "tiny" else 1e4 if len(calls) == 20 else 1.0
        return original(*arguments) * factor

    monkeypatch.setattr(agents.barlow_twins, "barlow_twins_loss", poisoned)
    shared = WATCHED | {"trainer__limit_val_batches": 0, "optim__lr": 1e-5}
    factors = "tiny"
    _, folder = train("tiny", **shared)
    (vanishing,) = (each for each in summary(folder)["alarms"] if "GRADIENTS VANISH" in each)
    assert vanishing.endswith("(step 21)")  # and to the end
    factors = "spike"
    calls.clear()
    _, folder = train("spike", **shared)
    (jump,) = (each for each in summary(folder)["alarms"] if "GRADIENTS JUMP" in each)
    assert re.search(r" \(step 21\) No longer from step 24 on\.$", jump)


class Trained(torch.nn.Linear):
    """Stands in for an agent, and for its trainer."""

    def __init__(self) -> None:
        super().__init__(1, 1, bias=False)
        self.global_step, self.estimated_stepping_batches = 0, 30
        self.callbacks, self.loggers, self.callback_metrics = [], [], {}
        self.precision_plugin = None

    def log_dict(self, *_: object, **__: object) -> None:
        """What is logged is not looked at."""


@pytest.mark.parametrize("overflow", [math.inf, math.nan])
def test_an_overflow_hides_no_jump(overflow):
    health, trained = callback_of("health"), Trained()
    for gradient in [1.0] * 15 + [overflow, 1000.0] + [1.0] * 15:
        trained.weight.grad = torch.full_like(trained.weight, gradient)
        health.on_before_optimizer_step(trained, trained, None)
        trained.global_step += 1
        health.on_train_batch_end(trained, trained, None, None, 0)
    with pytest.warns(UserWarning, match="GRADIENTS JUMP: norm 1e\\+03, usually 1"):
        health.on_train_epoch_end(trained, trained)


def test_an_alarm_that_is_over_stays_so_after_a_resume_until_it_rings_again():
    trained, said = Trained(), []
    trained.global_step, saved = 100, None
    for gradient in (0.0, 1.0, 1.0, 0.0):
        health = callback_of("health")
        if saved:
            health.load_state_dict(saved)
            assert list(health.alarms.values()) == said[-1]
        trained.weight.grad = torch.full_like(trained.weight, gradient)
        health.on_before_optimizer_step(trained, trained, None)
        health.on_train_batch_end(trained, trained, None, None, 0)
        health.on_train_epoch_end(trained, trained)
        saved = health.state_dict()
        said.append(list(health.alarms.values()))
        trained.global_step += 100
    (first,), over, still, again = said
    assert first.endswith("(step 100)")
    assert over == still == [f"{first} No longer from step 200 on."]
    assert again == [first]


class Steep(pl.LightningModule):
    """A loss that is a number, whose gradient is `gradient`."""

    def __init__(self, gradient: float) -> None:
        super().__init__()
        self.gradient, self.weight = gradient, torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        # An infinite slope times nothing is no number.
        slope = self.weight.sqrt() * 0 if math.isnan(self.gradient) else self.weight * self.gradient
        return slope.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("every", [1, 20])
@pytest.mark.parametrize(("gradient", "rings"), [(math.nan, True), (1e38, False), (1.0, False)])
def test_gradients_that_overflow_are_told_from_the_search_for_a_scale(
    tmp_path, recwarn, every, gradient, rings
):
    """Of 1e38 a scale of 65,536 has to be halved fifteen times."""
    health = callback_of("health", every_n_steps=every)
    scaler = torch.amp.GradScaler("cpu")
    trainer = float16_trainer(scaler, tmp_path, callbacks=[health], max_epochs=1)
    trainer.fit(Steep(gradient), DataLoader(torch.zeros(20)))
    assert (scaler.get_scale() == 65536) is (gradient == 1.0)
    assert list(health.alarms) == ["gradient_overflows"] * rings
    words = "GRADIENTS OVERFLOW: in float16 they are not finite"
    assert any(words in str(each.message) for each in recwarn) is rings


def test_a_step_that_is_mostly_noise(train, monkeypatch):
    original, signs = agents.barlow_twins.barlow_twins_loss, itertools.cycle((1, -1))

    def random(*arguments):  # the two halves of a batch want opposite things
        return original(*arguments) * next(signs)

    monkeypatch.setattr(agents.barlow_twins, "barlow_twins_loss", random)
    measured = {
        "callbacks__gradient_agreement__enabled": "true",
        "callbacks__gradient_agreement__every_n_steps": 1,
        "trainer__limit_val_batches": 0,
        "optim__lr": 1e-5,
        "barlow_twins__lambd": 0.0051,
    }
    _, folder = train("run", **WATCHED | measured)
    noise = r"MOSTLY NOISE: the gradients of two batches of 8 images agree to 0\.0\d"
    assert re.search(noise, rung(folder))
    assert "--data.batch_size" in rung(folder)


@pytest.mark.parametrize("goes_on", [True, False])
def test_what_weights_knew_and_is_lost(train, monkeypatch, goes_on):
    train("first", trainer__max_epochs=1)
    falling = {"dense_knn.measure": 0.5, "online_probe.knn_accuracy": 0.8}
    for name, start in falling.items():
        values = iter([max(0.1, start - 0.1 * firing) for firing in range(13)])
        monkeypatch.setattr(f"callbacks.{name}", lambda *_, values=values: next(values))
    watched = {f"callbacks__{name.split('.')[0]}__enabled": "true" for name in falling}
    weights = {"backbone__weights": "run:first"} if goes_on else {}
    _, folder = train("run", **WATCHED, **watched, **weights)
    for what, start in (("patches", "0.500"), ("images", "0.800")):
        lost = rf"UNLEARNT: nearest {what} tell classes worse .* \(0\.[1-6]00, before {start}\)"
        assert bool(re.search(lost, rung(folder))) is goes_on


def test_waiting_for_data(train, monkeypatch):
    original, clock = BatchLoader.__iter__, [0.0]

    def slowly(self):
        for batch in original(self):
            clock[0] += 5
            yield batch

    def read():
        clock[0] += 1
        return clock[0]

    monkeypatch.setattr(BatchLoader, "__iter__", slowly)
    monkeypatch.setattr(callbacks.throughput, "time", SimpleNamespace(perf_counter=read))
    _, folder = train("run", **WATCHED | {"trainer__max_epochs": 7})
    assert "WAITING: " in rung(folder)
    assert "data.num_workers" in rung(folder)


def test_no_judgement_of_a_fresh_network(train):
    _, folder = train("run", **WATCHED | {"optim__lr": 1.0, "trainer__max_epochs": 6})  # 18 steps
    assert summary(folder)["alarms"] == []


def test_numbers_are_logged_and_alarms_survive_a_resume(train):
    shared = {**DINO, "dino__sharpening": "false"}
    _, folder = train("run", **shared)
    row = read_metrics(folder / "metrics.csv")[30]
    for name in (
        "features_std",
        "mean_cosine",
        "rank_me",
        "grad_norm",
        "teacher_entropy",
        "center_norm",
        "chance_level",
    ):
        assert f"train/{name}" in row, name
    assert row["train/chance_level"] == pytest.approx(math.log(24))
    before = summary(folder)["alarms"]
    words = ["--run.resume", "run", "--run.dir", str(folder.parent), "--trainer.max_epochs", "13"]
    assert main(words) == 0
    assert summary(folder)["alarms"][: len(before)] == before


def test_numbers_stand_where_they_were_measured_alone(train):
    every = {"callbacks__health__enabled": "true", "callbacks__health__every_n_steps": 4}
    _, folder = train("run", **every, trainer__max_epochs=3)
    rows = read_metrics(folder / "metrics.csv")
    for name in ("grad_norm", "rank_me"):
        assert [step for step in rows if f"train/{name}" in rows[step]] == [0, 4, 8]
        assert summary(folder)[f"train/{name}"] == pytest.approx(rows[8][f"train/{name}"])


def test_the_gradient_is_measured_unclipped(train):
    shared = {**WATCHED, "trainer__max_epochs": 1}
    norms = []
    for name, clip in (("free", 0.0), ("clipped", 1e-3)):
        _, folder = train(name, trainer__gradient_clip=clip, **shared)
        norms.append(read_metrics(folder / "metrics.csv")[0]["train/grad_norm"])
    assert norms[0] == norms[1] > 1


def test_statistics_of_known_features():
    torch.manual_seed(0)
    random = torch.randn(400, 16, dtype=torch.float64)
    assert float(mean_std(random)) == pytest.approx(1, abs=0.02)
    assert float(mean_cosine(random)) == pytest.approx(0, abs=0.01)
    same = torch.ones(5, 16) + 1e-4 * torch.randn(5, 16)
    assert float(mean_std(same)) < 1e-3
    assert float(mean_cosine(same)) > 0.999
    assert float(effective_rank(same)) < 1.1
    cosines = torch.nn.functional.cosine_similarity(random[:9, None], random[None, :9], dim=-1)
    off = cosines[~torch.eye(9, dtype=torch.bool)]
    assert float(mean_cosine(random[:9])) == pytest.approx(float(off.mean()))
    assert float(effective_rank(torch.eye(10)[:, :6])) == pytest.approx(6)
    # Of the directions (1, 0) and (0, 1) both numbers are 1/2 away from their mean.
    assert float(mean_std(torch.tensor([[3.0, 0], [0, 2]]))) == pytest.approx(math.sqrt(2) / 2)


@pytest.mark.parametrize(("steps", "first"), [(10, 20), (33, 20), (180, 30), (320, 50), (9999, 50)])
def test_a_longer_run_has_longer_to_begin(steps, first):
    assert first_judgement(steps) == first


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (20, 20)])
def test_the_rank_is_that_of_the_singular_values(shape):
    torch.manual_seed(0)
    features = torch.randn(shape) * torch.logspace(0, -4, shape[1])
    singular = np.linalg.svd(features.double().numpy(), compute_uv=False)
    share = singular / singular.sum()
    expected = np.exp(-(share * np.log(share)).sum())
    assert float(effective_rank(features)) == pytest.approx(expected, rel=1e-6)
