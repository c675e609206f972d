"""Heads that tell more: exact in chunks, for every method, and it does what it is for."""

import pytest
import torch

from config import names
from models.attention import AttentionRequest
from models.backbones.resnet import resnet18
from models.backbones.vit import vit_tiny
from models.head_information import HeadInformation
from models.losses.attention import head_information
from tests.agents.test_barlow_twins import difference
from tests.conftest import summary, weights
from utils.metrics_file import read_metrics


def net(heads: int = 3, **changed):
    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24}
    return vit_tiny(**sizes, num_heads=heads, **changed)


def images(count: int = 4) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)


def test_without_weight_it_asks_for_nothing():
    backbone = net()
    off = HeadInformation(backbone, 0.0, [-1])
    x = images()
    assert torch.equal(off.pooled(backbone, x), backbone(x).pooled)
    assert off.split([torch.ones(2, 3)])[1] is None
    HeadInformation(resnet18(image_size=32), 0.0, [-1])


def test_the_information_travels_as_a_column():
    backbone, x = net(), images()
    on = HeadInformation(backbone, 1.0, [0, -1])
    found = on.pooled(backbone, x)
    assert found.shape == (4, 25)
    answers = backbone(x, AttentionRequest((0, 1), "cls")).attention
    expected = sum(head_information(a.patch_maps()[:, :, 0].flatten(2)) for a in answers) / 2
    torch.testing.assert_close(found[:, -1], expected)
    (features, other), told = on.split([found, found + 1])
    assert torch.equal(features, backbone(x).pooled)
    assert other.shape == (4, 24)
    torch.testing.assert_close(told, expected.mean() + 0.5)


def test_the_term_is_taken_off_a_loss_and_named():
    off, on = (HeadInformation(net(), weight, [-1]) for weight in (0.0, 0.5))
    assert off.added(torch.tensor(3.0), None) == (torch.tensor(3.0), {})
    loss, named = on.added(torch.tensor(3.0), torch.tensor(0.4))
    assert float(loss) == pytest.approx(3.0 - 0.5 * 0.4)
    assert named == {"head_information": torch.tensor(0.4)}
    assert float(on.without(loss, named)) == pytest.approx(3.0)
    assert float(off.without(torch.tensor(3.0), {})) == 3.0


def test_heads_learn_to_differ():
    backbone, x = net(), images(16)
    on = HeadInformation(backbone, 1.0, [-1])
    optimizer = torch.optim.Adam(backbone.parameters(), 3e-3)
    values = []
    for _ in range(30):
        _, told = on.split([on.pooled(backbone, x)])
        optimizer.zero_grad()
        (-told).backward()
        optimizer.step()
        values.append(float(told))
    assert values[0] < 0.05
    assert values[-1] > 0.5


def test_pooled_by_mean_asks_what_patches_receive():
    backbone = net(pool="mean")
    assert HeadInformation(backbone, 1.0, [-1]).request == AttentionRequest((-1,), "mean")


def test_what_has_no_heads_to_differ_is_refused():
    with pytest.raises(ValueError, match="ResNet has no attention heads"):
        HeadInformation(resnet18(image_size=32), 1.0, [-1])
    with pytest.raises(ValueError, match="single head"):
        HeadInformation(net(heads=1), 1.0, [-1])
    with pytest.raises(ValueError, match=r"--head_information\.blocks: block \[5\] of .*use 0 … 1"):
        HeadInformation(net(), 1.0, [5])


@pytest.mark.parametrize("task", names.PRETRAINING)
def test_chunks_are_the_whole(train, task):
    shared = {
        "task": task,
        "head_information__weight": 5.0,
        "trainer__precision": "64-true",
        "trainer__max_epochs": 1,
        "optim__name": "sgd",
        "optim__lr": 0.01,
        "optim__warmup_epochs": 0,
    }
    code, whole = train("whole", **shared)
    assert code == 0
    _, chunked = train("chunked", trainer__chunk_size=3, **shared)
    assert difference(weights(chunked), weights(whole)) < 1e-10
    name = "train/head_information"
    assert summary(chunked)[name] == pytest.approx(summary(whole)[name], abs=1e-9)
    _, without = train("without", **shared | {"head_information__weight": 0.0})
    assert difference(weights(without), weights(whole)) > 1e-8
    # What is logged, chosen by and told is the method's own.
    first, other = (read_metrics(folder / "metrics.csv")[0] for folder in (whole, without))
    assert first["train/loss"] == pytest.approx(other["train/loss"], rel=1e-9)
    assert 0 < summary(whole)["val/head_information"] < 1
    assert "val/head_information" not in summary(without)


def test_settings_that_do_nothing(train, capsys):
    code, _ = train("bad", head_information__blocks=0)
    assert code == 2
    assert "without --head_information.weight" in capsys.readouterr().err.replace("\n", " ")
    code, _ = train("resnet", backbone__name="resnet18", head_information__weight=1)
    assert code == 2
    assert "has no effect with --backbone.name resnet18" in capsys.readouterr().err.replace(
        "\n", " "
    )
    code, _ = train("other", task="segmentation", head_information__weight=1)
    assert code == 2
