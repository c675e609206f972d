"""What a backbone has before the first step is measured, and no readout ends a run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.plugins.precision import MixedPrecision

from agents.summary import learnt
from callbacks import online_probe
from callbacks.attention_quality import AttentionQuality
from callbacks.dense_knn import METRIC, DenseKNN
from callbacks.online_probe import OnlineProbe
from main import main
from models.backbones.vit import vit_tiny
from tests.conftest import assert_same, callback_of, options, summary
from utils.metrics_file import read_metrics


def on(**more):
    return {
        "callbacks__online_probe__enabled": "true",
        "callbacks__online_probe__every_n_epochs": 1,
        **more,
    }


def resume(folder, **changed):
    """Trains another epoch; no readout may fail."""
    words = {"run.dir": folder.parent, "run.resume": folder.name, "trainer.max_epochs": 2}
    assert main(options(words | {path.replace("__", "."): v for path, v in changed.items()})) == 0
    found = summary(folder)
    assert (found["epochs"], found["readout_failures"]) == (2, {})
    return found


def test_what_was_there_before_the_first_step_is_kept_and_said(train, capsys):
    code, folder = train(**on(trainer__max_epochs=2))
    assert code == 0
    found = summary(folder)
    first = read_metrics(folder / "metrics.csv")[0]
    for name in ("val/knn_accuracy", "val/linear_accuracy"):
        assert found[f"before/{name}"] == pytest.approx(first[name])
    # Said where it changed.
    changed = found["before/val/knn_accuracy"] != found["val/knn_accuracy"]
    assert ("k-NN accuracy" in capsys.readouterr().out) == changed


def test_what_became_of_a_number_is_said_where_it_changed():
    probe = OnlineProbe(1, 1, "both")
    probe.before = {"val/knn_accuracy": 0.5, "val/linear_accuracy": 0.1}
    now = {"val/knn_accuracy": 0.52, "val/linear_accuracy": float(torch.tensor(0.1))}
    assert learnt([probe], now) == ["Before the first step → now: k-NN accuracy 0.50 → 0.52."]
    assert learnt([probe], {**probe.before}) == []


def test_a_resumed_run_remembers_it(train):
    code, folder = train(**on(trainer__max_epochs=1))
    assert code == 0
    before = summary(folder)["before/val/knn_accuracy"]
    assert resume(folder)["before/val/knn_accuracy"] == before


def state_of(folder, readout):
    file = folder / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    return file, checkpoint, checkpoint["callbacks"][readout]


def test_what_was_measured_of_other_images_is_forgotten(train, image_folder, said):
    code, folder = train(**on(trainer__max_epochs=1))
    assert code == 0
    for place in ("deep", "flat", "far"):  # three classes, where there were others
        (image_folder / place).mkdir(exist_ok=True)
    for number, file in enumerate(image_folder.glob("*.png")):
        file.rename(image_folder / ("flat", "far")[number % 2] / file.name)
    found = resume(folder, probe__data__name="image_folder", probe__data__root=image_folder)
    assert "val/linear_accuracy" in found
    assert not [name for name in found if name.startswith("before/")]
    forgotten = [line for line in said if "forgotten" in line]
    assert forgotten == [
        "Earlier values of val/knn_accuracy do not compare with later ones, with another "
        "--probe.data: they are forgotten."
    ]


@pytest.mark.parametrize(
    ("readout", "setting", "value"),
    [
        ("online_probe", "probe.k", 3),
        ("online_probe", "probe.temperature", 0.5),
        ("online_probe", "callbacks.online_probe.num_images", 15),
        ("dense_knn", "callbacks.dense_knn.k", 3),
        ("dense_knn", "callbacks.dense_knn.num_images", 15),
        ("attention_quality", "callbacks.attention_quality.mass", 0.3),
        ("attention_quality", "callbacks.attention_quality.num_images", 3),
        ("attention_quality", "callbacks.attention_quality.image_size", 48),
    ],
)
def test_what_was_measured_otherwise_is_forgotten(readout, setting, value, said):
    first, same, other = (
        callback_of(readout, **changed) for changed in ({}, {}, {setting.rpartition(".")[2]: value})
    )
    for each in (first, same, other):
        trainer = SimpleNamespace(datamodule=SimpleNamespace(image_size=32))
        each.setup(trainer, torch.nn.Identity(), "fit")
    first.before = {"number": 0.5}
    same.load_state_dict(first.state_dict())
    assert same.before == first.before
    assert said == []
    other.load_state_dict(first.state_dict())
    assert other.before == {}
    assert f"with another --{setting}: they are forgotten" in said[0]


def test_what_an_earlier_version_measured_is_kept(train):
    _, folder = train(**on(trainer__max_epochs=1))
    file, checkpoint, state = state_of(folder, "OnlineProbe")
    del state["facts"]
    before = state["before"]
    file.unlink()  # which is a name of the best as well
    torch.save(checkpoint, file)
    resume(folder, callbacks__online_probe__num_images=15)
    assert state_of(folder, "OnlineProbe")[2]["before"] == before


def test_a_readout_that_fails_ends_no_run(train, monkeypatch):
    def fails(*_: object) -> dict[str, float]:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(OnlineProbe, "measure", fails)
    with pytest.warns(UserWarning, match="online_probe failed.*no such thing"):
        code, folder = train(may_fail=True, **on(trainer__max_epochs=1))
    assert code == 0
    assert (folder / "checkpoints" / "last.ckpt").exists()


def test_features_that_are_no_numbers_are_not_judged(train, monkeypatch):
    """The k-NN of NaN is the first class, and a classifier fitted to it is lost for good."""
    of_backbone = online_probe.pooled_features
    calls = iter(range(100))

    def broken_once(*arguments):
        features = of_backbone(*arguments)
        return features * torch.nan if next(calls) == 2 else features  # after the first epoch

    monkeypatch.setattr(online_probe, "pooled_features", broken_once)
    with pytest.warns(UserWarning, match="not all finite"):
        code, folder = train(may_fail=True, **on(trainer__max_epochs=2))
    assert code == 0
    state = state_of(folder, "OnlineProbe")[2]
    assert all(tensor.isfinite().all() for tensor in state["linear"].values())


def test_without_an_image_to_judge_by_there_is_no_accuracy():
    ten, none = torch.zeros(10, 3, 8, 8, dtype=torch.uint8), torch.zeros(0, 3, 8, 8)
    parts = (ten, torch.zeros(10).long()), (none, torch.zeros(0).long()), ("a", "b")
    data = SimpleNamespace(labelled_examples=lambda *_: parts)
    with pytest.raises(ValueError, match=r"0 of 10 labelled .* Raise --callbacks\.online_probe"):
        OnlineProbe(1, 10, "both").measure(SimpleNamespace(datamodule=data), torch.nn.Identity())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [OnlineProbe, DenseKNN, AttentionQuality])
def test_a_run_that_only_ends_tells_what_was_measured_before_it_was_killed(kind):
    wanted = inspect.signature(kind).parameters
    resumed = kind(**{name: 1 for name, each in wanted.items() if each.default is each.empty})
    names = list(resumed.headlines)
    assert names
    resumed.restore({"before": dict.fromkeys(names, 0.25), "now": dict.fromkeys(names, 0.5)})
    (line,) = learnt([resumed], dict.fromkeys(names, 0.5))
    assert line.count("0.25 → 0.50") == len(names)


def test_what_rounds_to_nothing_has_no_sign():
    readout = DenseKNN(every_n_epochs=1, num_images=4, k=4)
    readout.before = {METRIC: -0.001}
    (line,) = learnt([readout], {METRIC: -0.004})
    assert "0.00 → 0.00" in line
    assert "-" not in line.partition("mIoU")[2]


class Looking(torch.nn.Module):
    """An agent with a backbone, of which the readout is told the features."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = vit_tiny(image_size=16, patch_size=8, depth=1)


@pytest.fixture
def measured(monkeypatch):
    """Measures features `(n, 2)` of two classes, those that are learnt from and the queries."""
    monkeypatch.setattr(online_probe, "pooled_features", lambda _, features: features)

    def measure(probe: OnlineProbe, bank, queries, precision=None) -> Mapping[str, float]:
        labels = (torch.arange(len(part)) % 2 for part in (bank, queries))
        parts = *zip((bank, queries), labels, strict=True), ("a", "b")
        data = SimpleNamespace(labelled_examples=lambda *_: parts)
        trainer = SimpleNamespace(datamodule=data, precision_plugin=precision)
        return probe.measure(trainer, Looking())  # type: ignore[arg-type]

    return measure


def two_classes(count: int, seed: int) -> torch.Tensor:
    noise = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) - 0.5
    return noise + torch.tensor([[2.0, 0.0], [-2.0, 0.0]])[torch.arange(count) % 2]


def test_the_linear_classifier_sees_features_of_any_size_and_place(measured):
    bank, queries = two_classes(300, 0), two_classes(50, 1)
    probe = OnlineProbe(1, 1, "both")
    for _ in range(20):  # it begins at random, and its rate is low
        scores = measured(probe, 1000 + 0.01 * bank, 1000 + 0.01 * queries)
    assert scores["val/linear_accuracy"] == 1.0
    assert set(scores) == {"val/knn_accuracy", "val/linear_accuracy"}
    for kind in ("knn", "linear"):
        assert set(measured(OnlineProbe(1, 1, kind), bank, queries)) == {f"val/{kind}_accuracy"}


def test_the_linear_classifier_goes_on_from_where_it_was(measured):
    bank, queries = two_classes(300, 0), two_classes(50, 1)
    first, resumed, fresh = (OnlineProbe(1, 1, "linear") for _ in range(3))
    measured(first, bank, queries)
    resumed.load_state_dict(deepcopy(first.state_dict()))
    # Also where the run ends before it is needed.
    assert_same(resumed.state_dict()["linear"], first.state_dict()["linear"])
    for probe in (first, resumed, fresh):
        measured(probe, bank, queries)
    assert_same(resumed.state_dict()["linear"], first.state_dict()["linear"])
    weight = first.state_dict()["linear"]["weight"]
    assert not torch.equal(weight, fresh.state_dict()["linear"]["weight"])


def test_the_linear_classifier_is_of_whole_precision_and_of_one_image_too(measured):
    start = OnlineProbe(1, 1, "linear")
    measured(start, two_classes(4, 0), two_classes(4, 1))
    for bank in (two_classes(300, 0), two_classes(1, 0)):
        exact, mixed = OnlineProbe(1, 1, "linear"), OnlineProbe(1, 1, "linear")
        for probe, precision in ((exact, None), (mixed, MixedPrecision("bf16-mixed", "cpu"))):
            probe.load_state_dict(deepcopy(start.state_dict()))
            measured(probe, bank, two_classes(4, 1), precision)
        assert_same(exact.state_dict()["linear"], mixed.state_dict()["linear"])
        assert all(part.isfinite().all() for part in exact.state_dict()["linear"].values())
