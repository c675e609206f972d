"""What holds of every method of joint embedding: chunks are the whole, a resume goes on exactly."""

import pytest

from main import main
from tests.agents.test_barlow_twins import agent_for, difference
from tests.agents.test_dino import clip_together, norm
from tests.conftest import assert_same, stopped_after, weights
from utils.metrics_file import read_metrics

METHODS = pytest.mark.parametrize(
    "method",
    [
        {"task": "lejepa"},
        {"barlow_twins__loss": "vicreg"},
        {"barlow_twins__mix": 4.0, "data__batch_size": 7},
    ],
    ids=["lejepa", "vicreg", "mixed"],
)


@METHODS
def test_chunked_training_equals_whole_training_in_float64(train, method):
    shared = {
        **method,
        "trainer__precision": "64-true",
        "trainer__max_epochs": 1,
        # SGD: Adam would blow rounding differences of zero gradients up to whole steps.
        "optim__name": "sgd",
        "optim__lr": 0.01,
        "optim__warmup_epochs": 0,
    }
    _, whole = train("whole", **shared)
    _, chunked = train("chunked", trainer__chunk_size=3, data__num_workers=1, **shared)
    assert difference(weights(chunked), weights(whole)) < 1e-10
    one, other = (read_metrics(folder / "metrics.csv")[2] for folder in (chunked, whole))
    assert one["val/loss"] == pytest.approx(other["val/loss"], rel=1e-6)


@METHODS
def test_k_steps_and_k_more_are_2k_steps(train, method):
    shared = {**method, "backbone__drop_path": 0.3, "trainer__chunk_size": 4}
    _, whole = train("whole", **shared)
    with stopped_after(4):
        code, half = train("half", **shared)
    assert code == 130
    assert main(["--run.resume", "half", "--run.dir", str(half.parent)]) == 0
    assert_same(weights(half), weights(whole))


@METHODS
def test_mixed_precision_trains_in_chunks(train, method):
    shared = {"trainer__precision": "bf16-mixed", "trainer__chunk_size": 4}
    code, _ = train("amp", **method, **shared, trainer__gradient_clip=1.0, trainer__max_epochs=1)
    assert code == 0


def test_a_backbone_that_waits_does_not_count_in_clipping():
    agent = agent_for(backbone__freeze_epochs=1, barlow_twins__hidden_dim=16)
    clip_together(agent, 1.0)
    agent.configure_gradient_clipping(None)
    assert all(p.grad is None for p in agent.backbone.parameters())
    assert norm(agent.projector) == pytest.approx(1.0, rel=1e-4)


def test_the_backbone_waits_for_its_projector(train):
    shared = {"task": "lejepa", "optim__warmup_epochs": 0}
    one, two, trained = (
        weights(
            train(
                f"{waits}-{epochs}",
                backbone__freeze_epochs=waits,
                trainer__max_epochs=epochs,
                **shared,
            )[1]
        )
        for waits, epochs in ((1, 1), (2, 2), (1, 2))
    )

    def part(state, name):
        return {key: value for key, value in state.items() if key.startswith(name)}

    assert_same(part(two, "backbone."), part(one, "backbone."))
    assert difference(part(two, "projector."), part(one, "projector.")) > 1e-4
    assert difference(part(trained, "backbone."), part(one, "backbone.")) > 1e-4
