"""Minutes-long: `pytest -m slow`."""

import pytest

from tests.conftest import summary
from utils.metrics_file import read_metrics

pytestmark = pytest.mark.slow


def test_the_matrix_approaches_the_identity(train):
    code, folder = train(
        "long",
        data__batch_size=24,
        backbone__embed_dim=48,
        backbone__pool="mean",
        barlow_twins__lambd=0.02,
        optim__lr=2e-3,
        trainer__max_epochs=300,
        trainer__limit_val_batches=0,
    )
    assert code == 0
    first, *_, last = (
        row for row in read_metrics(folder / "metrics.csv").values() if "train/loss" in row
    )
    assert last["train/loss"] < 0.5 * first["train/loss"]
    assert last["train/diagonal_mean"] > first["train/diagonal_mean"] + 0.15
    assert summary(folder)["train/embedding_std"] > 0.5


def test_torch_compile_trains_to_the_same_loss(train):
    shared = {"trainer__max_epochs": 1}
    _, plain = train("plain", **shared)
    code, compiled = train("compiled", trainer__compile="true", **shared)
    assert code == 0
    assert summary(compiled)["train/loss"] == pytest.approx(summary(plain)["train/loss"], rel=1e-3)
