"""LeJEPA in a real training loop. That chunks are the whole: test_joint_embedding.py."""

import re

import pytest
import torch

from agents.lejepa import sigreg_of_views
from config.hparams import Hparams
from main import main
from models.losses.lejepa import expected_sigreg
from tests.conftest import summary
from utils.metrics_file import read_metrics


def test_the_loss_adds_up_and_is_read_against_a_gaussian(train, capsys):
    code, folder = train("run", task="lejepa", lejepa__lambd=0.2)
    assert code == 0
    rows = read_metrics(folder / "metrics.csv")
    for row in rows.values():
        for split in ("train", "val"):
            if f"{split}/loss" in row:
                prediction, normality = row[f"{split}/prediction"], row[f"{split}/sigreg"]
                total = 0.8 * prediction + 0.2 * normality
                assert row[f"{split}/loss"] == pytest.approx(total, rel=1e-5)
                assert row[f"{split}/sigreg_excess"] == pytest.approx(
                    normality - expected_sigreg(17, 3.0), abs=1e-5
                )
    found = summary(folder)
    for key in ("embedding_std", "effective_rank"):
        assert found[f"val/{key}"] > 0
    assert found["val/noise_floor"] == pytest.approx(0.2 * expected_sigreg(17, 3.0))
    assert found["train/lr"] >= 0
    assert rows[0]["train/rank_me"] > 0  # health sees the features
    assert "SIGReg" in capsys.readouterr().out
    assert main(["--evaluate", "run", "--run.dir", str(folder.parent)]) == 0
    best = min(row["val/loss"] for row in rows.values() if "val/loss" in row)
    assert summary(folder)["evaluate/loss"] == pytest.approx(best, rel=1e-4)


def test_directions_are_new_in_every_step_and_fixed_on_validation():
    z = [torch.randn(8, 16) * 3]
    hparams = Hparams(task="lejepa")
    values = [float(sigreg_of_views(z, hparams, step)[0]) for step in (0, 1, 0)]
    assert values[0] == values[2] != values[1]
    hparams.run.seed = 1
    assert float(sigreg_of_views(z, hparams, 0)[0]) != values[0]


@pytest.mark.parametrize("views", [2, 5])
def test_any_number_of_views(train, views):
    code, folder = train(
        "run",
        task="lejepa",
        lejepa__views=views,
        trainer__max_epochs=1,
        callbacks__views__enabled="true",
    )
    assert code == 0
    assert list(folder.glob("figures/views/**/*.png"))


def agent_for(**changed):
    from agents.build import build_agent
    from agents.sources import build_source
    from config.length import resolve_for_data
    from config.resolve import resolve

    hparams = Hparams(task="lejepa")
    for path, value in changed.items():
        group, leaf = path.split("__")
        setattr(getattr(hparams, group), leaf, value)
    hparams = resolve_for_data(resolve(hparams), 512, on_gpu=False)
    return build_agent(hparams, build_source(hparams))


def test_the_recipe_is_the_minimal_examples():
    agent = agent_for(data__batch_size=256)
    assert agent.lr == 2e-3
    assert agent.settings.optim.weight_decay == 0.05
    shapes = [tuple(p.shape) for p in agent.projector.parameters() if p.ndim == 2]
    assert shapes == [(2048, 96), (2048, 2048), (64, 2048)]
    assert agent.projector[-1].bias is not None


def test_accumulation_is_called_by_its_name():
    (warning,) = agent_for(trainer__accumulate=8).warnings()
    assert re.search(r"not a larger batch .* --trainer.chunk_size", warning)


def test_words_for_collapse_and_health():
    agent = agent_for()
    numbers = {
        "val/loss": 0.2,
        "val/prediction": 0.1,
        "val/sigreg": 1.2,
        "val/sigreg_excess": 0.14,
        "val/sigreg_collapsed": 52.0,
        "val/noise_floor": 0.05,
        "val/embedding_std": 0.95,
    }
    words = " ".join(agent.in_words(numbers))
    assert "agree well" in words
    assert "(a Gaussian 1.06; all embeddings 0 52.0)" in words
    assert "agree hardly" in " ".join(agent.in_words(numbers | {"val/prediction": 0.7}))
    assert (
        "COLLAPSED" in agent.in_words(numbers | {"val/sigreg": 50.0, "val/sigreg_excess": 48.9})[0]
    )
    # Of embeddings twice, and ten times, as wide as a Gaussian's, which have not collapsed.
    for found in (36.0, 160.0):
        wide = numbers | {"val/sigreg": found, "val/sigreg_excess": found - 1.06}
        assert "or spread too widely" in agent.in_words(wide)[0]
    assert "raise lejepa.lambd" in agent.in_words(numbers | {"val/embedding_std": 0.01})[0]
    assert "No step" in agent.in_words({})[0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lejepa__knots": 2}, "--lejepa.knots 2: expected at least 3 and at most 257"),
        ({"lejepa__knots": 1000}, "--lejepa.knots 1000: expected at least 3 and at most 257"),
        ({"lejepa__knots": 3, "lejepa__integration_limit": 20}, "lie 10 apart, more than 1.5"),
        ({"lejepa__views": 1}, "--lejepa.views 1: expected at least 2"),
        ({"lejepa__lambd": 1.5}, "expected at least 0 and at most 1"),
        ({"lejepa__crop_scale": 0.5}, "--lejepa.crop_scale 0.5: expected two shares"),
        ({"data__batch_size": 1}, "--data.batch_size 1: expected at least 2"),
        ({"barlow_twins__projector_dim": 8}, "no effect on task lejepa"),
        ({"task": "dino", "lejepa__views": 3}, "no effect on task dino"),
    ],
)
def test_impossible_settings(train, capsys, changed, message):
    code, folder = train("run", **({"task": "lejepa"} | changed))
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not folder.exists()
