"""What a backbone has before the first step is measured, and no readout ends a run."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from callbacks import online_probe
from callbacks.online_probe import OnlineProbe
from utils.metrics_file import read_metrics


def on(**more):
    return {
        "callbacks__online_probe__enabled": "true",
        "callbacks__online_probe__every_n_epochs": 1,
        **more,
    }


def test_what_was_there_before_the_first_step_is_kept_and_said(train, capsys):
    code, folder = train(**on(trainer__max_epochs=2))
    assert code == 0
    summary = json.loads((folder / "summary.json").read_text())
    first = read_metrics(folder / "metrics.csv")[0]
    for name in ("val/knn_accuracy", "val/linear_accuracy"):
        assert summary[f"before/{name}"] == pytest.approx(first[name])
    # Said where it changed.
    changed = summary["before/val/knn_accuracy"] != summary["val/knn_accuracy"]
    assert ("k-NN accuracy" in capsys.readouterr().out) == changed


def test_a_resumed_run_remembers_it(train):
    code, folder = train(**on(trainer__max_epochs=1))
    assert code == 0
    before = json.loads((folder / "summary.json").read_text())["before/val/knn_accuracy"]
    code, folder = train("run", "--run.resume", "run", "--trainer.max_epochs", "2")
    assert json.loads((folder / "summary.json").read_text())["before/val/knn_accuracy"] == before


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
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    (state,) = (v for k, v in checkpoint["callbacks"].items() if k.startswith("OnlineProbe"))
    assert all(tensor.isfinite().all() for tensor in state["linear"].values())


def test_without_an_image_to_judge_by_there_is_no_accuracy():
    ten, none = torch.zeros(10, 3, 8, 8, dtype=torch.uint8), torch.zeros(0, 3, 8, 8)
    parts = (ten, torch.zeros(10).long()), (none, torch.zeros(0).long()), ("a", "b")
    data = SimpleNamespace(labelled_examples=lambda *_: parts)
    with pytest.raises(ValueError, match="0 of 10 labelled images are held out"):
        OnlineProbe(1, 10, "both").measure(SimpleNamespace(datamodule=data), torch.nn.Identity())  # type: ignore[arg-type]
