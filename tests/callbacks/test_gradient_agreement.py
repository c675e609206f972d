"""Batches are compared, cheaply and without a trace."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from agents.barlow_twins import BarlowTwins
from agents.dino import DINO
from agents.joint_embedding import JointEmbedding
from callbacks.gradient_agreement import FEWEST_FOR_ALARM, GradientAgreement, untouched
from datamodules.loading import Batch
from main import main
from models.measures.gradient_noise import GradientPair
from tests.conftest import assert_same, summary, weights
from utils.metrics_file import read_metrics

ON = {
    "callbacks__gradient_agreement__enabled": "true",
    "callbacks__gradient_agreement__every_n_steps": 1,
}
METHODS = pytest.mark.parametrize(
    "method",
    [
        {"backbone__drop_path": 0.3},
        {"backbone__name": "resnet18", "trainer__chunk_size": 3},
        {"barlow_twins__mix": 4.0, "trainer__precision": "bf16-mixed"},
        {"task": "lejepa", "trainer__chunk_size": 4},
        {"task": "dino", "trainer__accumulate": 3, "trainer__limit_train_batches": 3},
        {"task": "dino", "trainer__chunk_size": 4, "head_information__weight": 1.0},
        {"task": "dino", "backbone__name": "resnet18"},
        {"task": "dino_twins", "backbone__drop_path": 0.3},
    ],
    ids=["twins", "resnet", "mixed", "lejepa", "dino", "pieces", "dino_resnet", "dino_twins"],
)


def batch_of(indices: torch.Tensor) -> Batch:
    images = [torch.zeros(len(indices), 3, 1, 1, dtype=torch.uint8)]
    return Batch((images, images), indices, ())


@METHODS
def test_a_run_with_it_is_the_run_without_it(train, method):
    assert train("without", **method)[0] == 0
    code, folder = train("with", **method, **ON)
    assert code == 0
    assert_same(weights(folder), weights(folder.parent / "without"))
    one, other = (read_metrics(f / "metrics.csv") for f in (folder, folder.parent / "without"))
    for step, row in other.items():
        kept = {k: v for k, v in one[step].items() if "gradient_" not in k and "share" not in k}
        assert kept == {k: v for k, v in row.items() if "share" not in k}
    cosines = [
        row["train/gradient_cosine"] for row in one.values() if "train/gradient_cosine" in row
    ]
    assert cosines
    assert all(-1 <= cosine <= 1 for cosine in cosines)
    assert "train/gradient_cosine_batch" in summary(folder)


def test_an_epoch_of_one_batch_is_said_to_have_no_second(train, capsys):
    code, folder = train(trainer__limit_train_batches=1, trainer__max_epochs=3, **ON)
    assert code == 0
    assert "train/gradient_cosine" not in summary(folder)
    assert capsys.readouterr().err.count("an epoch of one batch has no second one") == 1


@pytest.mark.parametrize("task", ["barlow_twins", "dino", "lejepa"])
def test_it_compares_a_batch_with_the_one_before_it_in_its_epoch(train, monkeypatch, task):
    kind = DINO if task == "dino" else JointEmbedding
    seen: list[list[int]] = []
    original = kind.batch_loss

    def noted(self, batch):
        seen.append(batch.indices.tolist())
        return original(self, batch)

    monkeypatch.setattr(kind, "batch_loss", noted)
    settings = {**ON, "callbacks__gradient_agreement__every_n_steps": 2, "task": task}
    code, folder = train(trainer__max_epochs=2, **settings)  # steps 0 … 5, of 8 images
    assert code == 0
    # Due are steps 0, 2 and 4; 0 begins an epoch, so that it is 1.
    rows = read_metrics(folder / "metrics.csv")
    assert [step for step, row in rows.items() if "train/gradient_cosine" in row] == [1, 2, 4]
    assert [len(indices) for indices in seen] == [8] * 6
    assert seen[1] == seen[2]  # the batch of step 1, then the one before step 2
    for before, batch in zip(seen[::2], seen[1::2], strict=True):
        assert not set(before) & set(batch)


class Linear(nn.Module):
    """A linear regression as a learner, whose loss is that of the indices."""

    from_weights = False

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        self.trained_backbone = nn.Linear(width, 1, bias=False).double()
        self.head = nn.Linear(1, 1).double()
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(4096, width, dtype=torch.float64, generator=generator)
        self.noise = 0.7 * torch.randn(4096, dtype=torch.float64, generator=generator)

    def batch_loss(self, batch: Batch) -> torch.Tensor:
        residual = self.trained_backbone(self.x[batch.indices])[:, 0] - self.noise[batch.indices]
        return residual.square().mean() / 2 + 0 * self.head.weight.sum()


def trainer_of(**more: Any) -> Any:
    from pytorch_lightning.plugins.precision import Precision

    return SimpleNamespace(precision_plugin=Precision(), accumulate_grad_batches=1, **more)


def test_a_linear_model_gets_its_known_noise_scale(monkeypatch):
    monkeypatch.setattr("callbacks.gradient_agreement.WINDOW", 128)
    torch.manual_seed(1)
    model, callback = Linear(), GradientAgreement(1)
    weight = model.trained_backbone.weight[0].detach()
    square, width = float(weight @ weight), len(weight)
    scale = (width * (square + 0.7**2) + square) / square
    for before, batch in torch.randperm(4096).view(-1, 2, 64):
        callback.measure(trainer_of(), model, batch_of(before), batch_of(batch))  # type: ignore[arg-type]
    assert len(callback.measured) == 4096 // 128
    assert callback.numbers()["gradient_noise_scale"] == pytest.approx(scale, rel=0.2)
    predicted = callback.numbers()["gradient_cosine_batch"]
    assert predicted == pytest.approx(1 / (1 + scale / 64), abs=0.06)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_buffers_and_random_states_are_put_back():
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())
    before = [buffer.clone() for buffer in net.buffers()]
    state = torch.get_rng_state()
    with untouched(net):
        net(torch.randn(5, 3))
        assert not torch.equal(net[0].running_mean, before[0])
    assert all(map(torch.equal, net.buffers(), before))
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training


def test_what_fails_is_said_and_ends_no_run(train, monkeypatch):
    def fails(*_: object) -> None:
        raise RuntimeError("no memory for two")

    monkeypatch.setattr(BarlowTwins, "batch_loss", fails)
    with pytest.warns(UserWarning, match="gradient_agreement failed.*no memory"):
        code, folder = train(may_fail=True, trainer__max_epochs=1, **ON)
    assert code == 0
    assert "train/gradient_cosine" not in summary(folder)


@pytest.mark.parametrize(
    ("scale", "verdict"),
    [(10_000, "Mostly noise"), (512, "More noise"), (100, "More signal"), (1, "Yes")],
)
def test_it_answers_in_words(scale, verdict):
    callback = GradientAgreement(1)
    callback.images = 256
    callback.measured.extend([GradientPair(0.45, 1.0, scale)] * FEWEST_FOR_ALARM)
    (line,) = callback.in_words()
    predicted = [1 / (1 + scale / (times * 256)) for times in (1, 2, 4)]
    assert f"two batches of 256 agree to {predicted[0]:.2f}" in line
    assert "with the error of 5 measurements" in line
    assert f"512 would agree to {predicted[1]:.2f}, 1024 to {predicted[2]:.2f}. {verdict}" in line
    assert callback.reading()["gradient_cosine_batch"] == pytest.approx(predicted[0])
    assert callback.reading()["gradient_cosine_most"] == pytest.approx(predicted[0])
    callback.measured.pop()
    assert callback.reading() == {}


def test_an_answer_says_how_sure_it_is():
    callback = GradientAgreement(1)
    callback.images = 100
    callback.measured.extend(GradientPair(0.3, signal, 100) for signal in (-1.0, 2.0, 2.0))
    (line,) = callback.in_words()
    assert "agree to 0.50 (cosine; 0.00 to 0.75 with the error of 3 measurements" in line
    assert "Uncertain, given this error: More noise than signal" in line
    callback.measured.clear()
    callback.measured.append(GradientPair(0.3, 1.0, 100))
    assert "0.50 (cosine; 0.00 to 1.00 with the error of 1 measurement" in callback.in_words()[0]
    assert "gradient_noise_scale" in callback.numbers()
    callback.measured[0] = GradientPair(-0.3, -1.0, 100)  # nothing but noise, as far as is known
    assert callback.numbers() == {"gradient_cosine": -0.3, "gradient_cosine_batch": 0.0}


def test_it_is_said_at_the_end_and_survives_a_resume(train, capsys):
    code, folder = train(trainer__max_epochs=2, **ON)
    assert code == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Is the batch large enough? Gradients of two batches of 8 agree to" in said
    assert "error of 4 measurements" in said
    words = ["--run.resume", "run", "--run.dir", str(folder.parent), "--trainer.max_epochs", "3"]
    assert main(words) == 0
    assert "error of 6 measurements" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_another_loss_is_measured_anew(train, capsys, recwarn):
    _, folder = train(trainer__max_epochs=1, **ON)
    words = ["--run.resume", "run", "--run.dir", str(folder.parent)]
    for more, measured, told in (
        (["--trainer.max_epochs", "2", "--optim.lr", "0.002"], 4, False),
        (["--trainer.max_epochs", "3", "--barlow_twins.scale", "0.1"], 2, True),
    ):
        assert main([*words, *more]) == 0
        said = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert f"error of {measured} measurements" in said
        warned = [str(each.message) for each in recwarn]
        assert any("with another --barlow_twins.scale: their" in each for each in warned) is told


def test_batches_that_are_accumulated_count_together():
    callback, model = GradientAgreement(1), Linear()
    trainer = trainer_of()
    trainer.accumulate_grad_batches = 4
    before, batch = map(batch_of, torch.arange(18).split(9))
    callback.measure(trainer, model, before, batch)  # type: ignore[arg-type]
    assert callback.images == 36
    assert math.isfinite(callback.measured[0].noise)


class Faint(Linear):
    """Its gradients are nothing in float16, unless a scaler multiplies them."""

    def __init__(self) -> None:
        super().__init__()
        self.trained_backbone.half()
        self.x, self.noise = self.x.half(), self.noise.half()

    def batch_loss(self, batch: Batch) -> torch.Tensor:
        return 1e-7 * super().batch_loss(batch).float()


def test_gradients_are_scaled_and_those_that_are_no_numbers_are_no_measurement():
    callback, model, trainer = GradientAgreement(1), Faint(), trainer_of()
    before, batch = map(batch_of, torch.arange(18).split(9))
    for factor, found in ((1.0, False), (2.0**16, True), (math.inf, False)):
        trainer.precision_plugin.scaler = SimpleNamespace(get_scale=lambda factor=factor: factor)
        assert bool(callback.measure(trainer, model, before, batch)) is found  # type: ignore[arg-type]
    assert len(callback.measured) == 1


def test_an_alarm_reads_the_most_that_the_cosine_may_be():
    watching = GradientAgreement(1)
    measured = [[0.1, 0.02 * signal, 9.0] for signal in (1, 3, 2, 4, 5)]
    watching.load_state_dict({"images": 64, "pairs": measured[:4], "last_step": 3})
    assert watching.reading() == {}  # too few
    watching.load_state_dict({"images": 64, "pairs": measured[4:], "last_step": 4})
    # Signal 0.06, two standard errors 2 * 0.02 * sqrt(2.5 / 5) above it; noise 9 / 64.
    most = 0.06 + 0.04 * 0.5**0.5
    assert watching.reading()["gradient_cosine_most"] == pytest.approx(most / (most + 9 / 64))
    assert watching.reading()["images_a_step"] == 64
    assert watching.state_dict()["last_step"] == 4


def test_halves_of_batches_are_not_averaged_with_whole_ones():
    resumed = GradientAgreement(1)
    resumed.load_state_dict({"images": 64, "measured": [[0.1, 0.2, 9.0]] * FEWEST_FOR_ALARM})
    assert resumed.numbers() == resumed.reading() == {}
