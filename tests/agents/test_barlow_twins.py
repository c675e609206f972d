"""The agent: whole batches through small memory, in a real training loop."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from agents.barlow_twins import BarlowTwins
from config.hparams import Hparams
from config.resolve import resolve
from datamodules.loading import Batch
from datamodules.seeding import generator
from models.mixing import Mixing
from tests.conftest import assert_same, summary, weights
from utils.metrics_file import read_metrics


def difference(first, second):
    largest = max(
        float(value.abs().max()) for value in second.values() if value.is_floating_point()
    )
    return (
        max(float((first[k].double() - second[k].double()).abs().max()) for k in second) / largest
    )


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_chunked_training_equals_whole_training_in_float64(train, clip):
    shared = {
        "trainer__precision": "64-true",
        "trainer__gradient_clip": clip,
        "trainer__max_epochs": 1,
        # SGD: Adam would blow rounding differences of zero gradients up to whole steps.
        "optim__name": "sgd",
        "optim__lr": 0.01,
        "optim__warmup_epochs": 0,
    }
    _, whole = train("whole", **shared)
    _, chunked = train("chunked", trainer__chunk_size=3, data__num_workers=1, **shared)
    assert difference(weights(chunked), weights(whole)) < 1e-10
    _, other = train("other", data__batch_size=4, trainer__accumulate=2, **shared)
    assert difference(weights(other), weights(whole)) > 1e-6  # accumulation is something else


def test_an_epoch_that_ends_with_fewer_batches_than_accumulate_averages_over_those(train):
    shared = {
        "trainer__precision": "64-true",
        "trainer__max_epochs": 2,
        "trainer__limit_train_batches": 1,
        "optim__name": "sgd",
        "optim__lr": 0.01,
    }
    _, alone = train("alone", **shared)
    _, last = train("last", trainer__accumulate=4, **shared)
    assert difference(weights(last), weights(alone)) < 1e-10


def test_chunked_training_with_drop_path_repeats_itself(train):
    shared = {"trainer__chunk_size": 4, "backbone__drop_path": 0.5, "trainer__max_epochs": 1}
    _, first = train("first", **shared)
    _, second = train("second", data__num_workers=2, **shared)
    assert_same(weights(first), weights(second))


def test_mixed_precision_trains_in_chunks(train):
    code, folder = train(
        "amp",
        trainer__precision="bf16-mixed",
        trainer__chunk_size=4,
        trainer__gradient_clip=1.0,
        trainer__max_epochs=1,
    )
    assert code == 0
    assert all(torch.isfinite(value).all() for value in weights(folder).values())


def test_frozen_backbone_is_not_touched(train):
    _, source = train("source", trainer__max_epochs=1)
    _, folder = train(
        "frozen",
        backbone__weights="run:source",
        backbone__freeze="true",
        trainer__max_epochs=1,
        trainer__chunk_size=4,
    )
    before, after = weights(source), weights(folder)
    for key, value in before.items():
        if key.startswith("backbone."):
            assert torch.equal(value, after[key]), key
    assert not torch.equal(before["projector.0.weight"], after["projector.0.weight"])


def agent_for(**changed):
    from agents.build import build_agent
    from agents.sources import build_source
    from config.length import resolve_for_data

    hparams = Hparams()
    for path, value in changed.items():
        group, leaf = path.split("__")
        setattr(getattr(hparams, group), leaf, value)
    hparams = resolve_for_data(resolve(hparams), 512, on_gpu=False)
    return build_agent(hparams, build_source(hparams))


def test_the_studys_failed_batch_is_warned_of():
    (warning,) = agent_for(data__batch_size=32).warnings()
    assert "0.079 > 0.04" in warning
    assert not agent_for(data__batch_size=128).warnings()


def test_a_try_out_is_not_told_that_it_is_likely_to_fail(train, said):
    for words, told in (([], True), (["--fast"], False)):
        said.clear()
        code, _ = train(f"run{told}", *words, trainer__max_epochs=1)
        assert code == 0
        assert any("Batch 8 is small" in line for line in said) is told


def test_accumulation_is_called_by_its_name():
    (warning,) = agent_for(trainer__accumulate=8).warnings()
    assert re.search(r"not a larger batch .* --trainer.chunk_size", warning)


@pytest.mark.parametrize("loss", ["barlow_twins", "vicreg"])
@pytest.mark.parametrize(
    ("factor", "said"), [(1e-3, "0.0296"), (1.0, "29.6"), (100.0, "2960"), (1e6, "2.96e+07")]
)
def test_losses_of_any_size_are_told_in_few_digits(loss, factor, said):
    numbers = {"loss": 29.6, "noise_floor": 9.8, "lower_bound": 7.8}
    numbers |= {"diagonal_mean": 0.5, "off_diagonal_rms": 0.4}
    numbers |= {"invariance": 1.0, "variance": 0.5, "covariance": 2.0}
    words = agent_for(barlow_twins__loss=loss).verdict(
        "val", {name: value * factor for name, value in numbers.items()}
    )
    assert words[0].startswith(f"Validation loss {said}.")


def test_vicreg_adds_up_and_has_words_of_its_own(train, capsys):
    weights = {"invariance": 10.0, "variance": 5.0, "covariance": 2.0}
    changed = {f"barlow_twins__{name}_weight": value for name, value in weights.items()}
    code, folder = train("run", barlow_twins__loss="vicreg", trainer__max_epochs=1, **changed)
    assert code == 0
    found = summary(folder)
    for split in ("train", "val"):
        total = sum(weight * found[f"{split}/{name}"] for name, weight in weights.items())
        assert found[f"{split}/loss"] == pytest.approx(total, rel=1e-5)
    assert "val/noise_floor" not in found
    assert "val/diagonal_mean" not in found
    assert found["val/embedding_std"] > 0
    said = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "mean squared difference" in said
    assert "noise floor" not in said


def test_mixed_images_are_a_term_of_training_alone(train):
    shared = {"trainer__max_epochs": 1, "data__batch_size": 7}
    _, plain = train("plain", **shared)
    code, mixed = train("mixed", barlow_twins__mix=4.0, **shared)
    assert code == 0
    first, other = (read_metrics(folder / "metrics.csv")[0] for folder in (plain, mixed))
    added = other["train/mixed_loss"]
    assert added > 0
    assert other["train/loss"] == pytest.approx(first["train/loss"] + added, rel=1e-5)
    assert "val/mixed_loss" not in summary(mixed)
    assert difference(weights(mixed), weights(plain)) > 1e-6


def test_what_is_logged_is_by_hand():
    method = {"scale": 0.5, "lambd": 0.01, "mix": 4.0}
    agent = agent_for(**{f"barlow_twins__{name}": value for name, value in method.items()}).train()
    agent.trainer = SimpleNamespace(global_step=3)  # type: ignore[assignment]
    z1, z2, mixed = torch.randn(3, 6, 4, dtype=torch.float64).unbind()
    loss, logged = agent.loss([z1, z2, mixed])

    def correlation(a, b):
        a, b = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (a, b))
        return a.T @ b / 6

    mixing = Mixing.draw(6, generator(agent.settings.run.seed, 3))  # another in every step
    expected = 0.0
    for view in (z1, z2):
        parts = mixing.alpha * correlation(z1, view)
        parts = parts + (1 - mixing.alpha) * correlation(z2[mixing.order], view)
        expected += float((correlation(mixed, view) - parts).square().sum())
    assert float(logged["mixed_loss"]) == pytest.approx(0.5 * 4 * 0.01 * expected)
    c = correlation(z1, z2)
    redundancy = c.square().sum() - c.diagonal().square().sum()
    own = float((1 - c.diagonal()).square().sum() + 0.01 * redundancy)
    assert float(loss) == pytest.approx(0.5 * own + float(logged["mixed_loss"]))
    # On the scale of the loss: 4 x 3 pairs of dimensions, 6 images.
    assert logged["noise_floor"] == pytest.approx(0.5 * 0.01 * 12 / 5)
    assert logged["lower_bound"] == 0


def test_a_mixed_image_counts_when_memory_is_measured():
    assert agent_for().passes((32, 32)) == (32, 32)
    assert agent_for(barlow_twins__mix=1.0).passes((32, 32)) == (32, 32, 32)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"barlow_twins__variance_weight": 3}, "without --barlow_twins.loss vicreg"),
        (
            {"barlow_twins__loss": "vicreg", "barlow_twins__mix": 1},
            "barlow_twins.loss barlow_twins",
        ),
        (
            {"barlow_twins__loss": "vicreg", "barlow_twins__lambd": 1},
            "with --barlow_twins.loss vic",
        ),
        ({"barlow_twins__loss": "vicreg", "task": "dino_twins"}, "on task dino_twins"),
        ({"barlow_twins__mix": 1, "task": "dino_twins"}, "on task dino_twins"),
        (
            {"barlow_twins__projector_layers": 1, "barlow_twins__hidden_dim": 8},
            "with --barlow_twins.projector_layers 1",
        ),
    ],
)
def test_settings_without_effect_are_refused(train, capsys, changed, reason):
    assert train("run", **changed)[0] == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "has no effect" in said
    assert reason in said


@pytest.mark.parametrize(
    ("given", "widths"),
    [
        ({}, [(24, 512), (512, 512), (512, 16)]),
        ({"projector_dim": 600}, [(24, 600), (600, 600), (600, 600)]),
        ({"hidden_dim": 40}, [(24, 40), (40, 40), (40, 16)]),
        ({"hidden_dim": 40, "projector_layers": 2}, [(24, 40), (40, 16)]),
    ],
)
def test_a_narrow_projector_has_wide_layers_inside_unless_said(given, widths):
    hparams = Hparams()
    hparams.barlow_twins.projector_dim = 16
    for name, value in given.items():
        setattr(hparams.barlow_twins, name, value)
    layers = BarlowTwins.make_projector(24, resolve(hparams))
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == widths


def test_vicreg_is_not_warned_of_a_noise_it_does_not_have():
    assert not agent_for(data__batch_size=32, barlow_twins__loss="vicreg").warnings()
    (warning,) = agent_for(barlow_twins__loss="vicreg", trainer__accumulate=8).warnings()
    assert "its own covariance matrices" in warning


def test_words_for_collapse_and_health():
    agent = agent_for()
    numbers = {
        "val/loss": 30.0,
        "val/diagonal_mean": 0.9,
        "val/off_diagonal_rms": 0.1,
        "val/embedding_std": 0.95,
        "val/noise_floor": 10.0,
        "val/lower_bound": 8.0,
    }
    assert "agree well" in " ".join(agent.in_words(numbers))
    # What differs a little between the views can have less: the bound is that of those alike.
    assert "equal in both views reach 10 " in agent.in_words(numbers)[0]
    assert "8 at best" in agent.in_words(numbers)[0]
    assert "COLLAPSED" in agent.in_words(numbers | {"val/embedding_std": 0.01})[0]
    assert "No step" in agent.in_words({})[0]


def test_images_are_mixed_where_the_network_is():
    agent = agent_for(barlow_twins__mix=1.0).train()
    agent.trainer = SimpleNamespace(global_step=0)  # type: ignore[assignment]
    chunk = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    views = agent.to("meta").views(Batch(([chunk] * 2, [chunk] * 2), torch.arange(4), ()))
    assert {each.device.type for view in views for each in view} == {"meta"}
