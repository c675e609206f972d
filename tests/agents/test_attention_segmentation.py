"""Attention in a segmentation from end to end: fusions, controls, its loss, cached features."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.build import build_agent
from agents.feature_cache import cache_features
from agents.segmentation import Segmentation
from agents.sources import build_source
from callbacks.step_outputs import CropOutputs, outputs_of
from datamodules.masked_images import collate
from main import main
from models.attention_supervision import attention_loss
from models.fusions.attention_fusion import Looks
from models.inference import WHOLE
from models.losses.attention import patch_shares
from models.segmenter import pad_to_multiple
from tests.agents.test_segmentation import parts
from tests.conftest import assert_same, options, summary, tiny, weights
from utils.palette import VOID
from utils.rng import CPU

FROZEN = {"task": "segmentation", "backbone__freeze": "true"}
FIXED = {**FROZEN, "data__views": "fixed"}


def batch_of(data: Any, count: int = 4) -> Any:
    return collate([data.train_set[0, index] for index in range(count)])


class Watched:
    """Stands in for the trainer that a training step asks."""

    num_training_batches, accumulate_grad_batches, global_step = 2, 1, 100
    optimizers = (type("O", (), {"param_groups": ({"lr": 0.1},)})(),)


def gradients(agent: Segmentation, batch: Any) -> dict[str, Tensor]:
    agent.trainer = Watched()  # type: ignore[assignment]
    agent.zero_grad()
    agent.training_step(batch, 0)["loss"].backward()
    return {name: p.grad for name, p in agent.network.named_parameters() if p.grad is not None}


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fusion", [("fusion1",), ("fusion2",), ("fusion3",), ("fusion1", "fusion2", "fusion3")]
)
def test_a_fusion_trains_and_says_what_it_learnt(train, fusion):
    code, folder = train("fused", "--segmentation.fusion", *fusion, **FIXED)
    assert code == 0
    found = summary(folder)
    assert found["status"] == "finished"
    learnt = {name: value for name, value in found.items() if name.startswith("fusion/")}
    if "fusion2" in fusion:
        assert 0 < learnt["fusion/fusion2/alpha"] < 1
        shares = [value for name, value in learnt.items() if "head" in name or "keys" in name]
        assert sum(shares) == pytest.approx(1, abs=1e-4)
        assert len(shares) == 2 * 3 + 2
    if "fusion3" in fusion:
        assert learnt["fusion/fusion3/strength"] != 0
    assert (folder.parent / ".cache").is_dir()
    assert main(["--evaluate", "fused", "--run.dir", str(folder.parent)]) == 0
    again = summary(folder)["evaluate/voc12_standard/miou"]
    assert again == pytest.approx(found["test/miou"], abs=0.02)  # half precision was kept


@pytest.mark.parametrize("control", ["shuffled", "uniform", "local", "random_init"])
@pytest.mark.parametrize("fixed", [True, False])
def test_controls_train_with_equal_parameters(train, control, fixed):
    code, folder = train(
        "control",
        **(FIXED if fixed else FROZEN),
        segmentation__fusion="fusion2",
        segmentation__fusion_control=control,
    )
    assert code == 0
    state = weights(folder)
    twin = {key: value for key, value in state.items() if key.startswith("fusion.twin.")}
    assert bool(twin) == (control == "random_init")
    if twin:
        key = "net.blocks.0.attn.qkv.weight"
        assert not torch.equal(twin[f"fusion.twin.{key}"], state[f"backbone.{key}"])
        assert main(["--evaluate", "control", "--run.dir", str(folder.parent)]) == 0


def test_a_control_starts_with_the_same_head(shapes_root):
    settings = {"backbone__freeze": "true", "segmentation__fusion": "fusion2"}
    true, _ = parts(shapes_root, **settings)
    control, _ = parts(shapes_root, **settings, segmentation__fusion_control="random_init")
    assert_same(true.network.head.state_dict(), control.network.head.state_dict())
    assert_same(true.backbone.state_dict(), control.backbone.state_dict())


def test_without_fusion_nothing_is_asked_of_the_backbone(shapes_root):
    agent, _ = parts(shapes_root)
    assert agent.network.fusion.request is None
    assert not list(agent.network.fusion.parameters())
    assert agent.network.fusion.learnt() == {}


def test_fusion_in_judgement_does_not_depend_on_the_batch(shapes_root):
    agent, data = parts(shapes_root, segmentation__fusion="fusion2", data__image_size=40)
    samples = [data.test_set[(0, index)] for index in range(5)]
    together = agent.validation_step(collate(samples), 0)
    alone = [agent.validation_step(collate([sample]), 0) for sample in samples]
    losses = torch.stack([each["loss"] for each in alone])
    torch.testing.assert_close(together["loss"], losses.mean(), rtol=1e-6, atol=0)


def test_a_run_reads_and_computes_the_same(train):
    """Cached features are those computed, to half precision: so is what is learnt from them."""
    shared = {
        **FIXED,
        "segmentation__fusion": "fusion2",
        "trainer__max_epochs": 1,
        # AdamW would blow rounding differences of small gradients up to whole steps.
        "optim__name": "sgd",
        "optim__lr": 0.01,
    }
    assert train("read", **shared)[0] == 0
    code, folder = train("computed", **shared, data__feature_cache="off")
    assert code == 0
    first, second = weights(folder.parent / "read"), weights(folder)
    for key in first:
        if key.startswith(("head.", "fusion.")) and first[key].is_floating_point():
            torch.testing.assert_close(first[key], second[key], rtol=0.02, atol=5e-3)
    files = {each: summary(folder.parent / each) for each in ("read", "computed")}
    losses = [found["train/loss"] for found in files.values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_gradients_of_cached_features_are_those_computed(shapes_root, tmp_path):
    settings = {"data__views": "fixed", "backbone__freeze": "true", "backbone__layers": "0,1"}
    agent, data = parts(shapes_root, **settings, segmentation__fusion="fusion2")
    agent.train()
    computed = gradients(agent, batch_of(data))
    data.cache_features(tmp_path, {}, agent.network.stored_features, True)
    batch = batch_of(data)
    assert len(batch.stored) == 4
    read = gradients(agent, batch)
    assert read.keys() == computed.keys()
    largest = max(float(gradient.abs().max()) for gradient in computed.values())
    for name, gradient in read.items():
        # Biases before a BatchNorm have gradients of rounding alone.
        scale = max(float(computed[name].abs().max()), 1e-6 * largest)
        torch.testing.assert_close(gradient / scale, computed[name] / scale, rtol=0, atol=5e-3)


def test_features_of_another_arithmetic_are_kept_apart(shapes_root, tmp_path, monkeypatch):
    settings = {"data__views": "fixed", "backbone__freeze": "true"}
    agent, data = parts(shapes_root, **settings, data__feature_cache=tmp_path)

    def caches() -> list[Path]:
        cache_features(agent.network, data, agent.settings, agent.classes, False, CPU)
        return list(tmp_path.iterdir())

    of_a_cpu = caches()
    assert len(caches()) == len(of_a_cpu) > 0
    monkeypatch.setattr("agents.feature_cache.arithmetic", lambda device: {"device": "cuda"})
    assert len(caches()) == 2 * len(of_a_cpu)


def test_an_interrupted_run_continues_with_its_cache(train, monkeypatch):
    shared = {**FIXED, "segmentation__fusion": "fusion2", "trainer__max_epochs": 4}
    _, whole = train("whole", **shared)
    step, interrupt_at = Segmentation.training_step, 3

    def interrupted(self: Segmentation, batch: Any, batch_idx: int) -> Any:
        if self.global_step == interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Segmentation, "training_step", interrupted)
    code, half = train("half", **shared)
    assert code == 130
    monkeypatch.undo()
    caches = sorted((half.parent / ".cache").iterdir())
    assert main(["--run.resume", "half", "--run.dir", str(half.parent)]) == 0
    # The features are those of the trained backbone, not of the one that waits for its checkpoint.
    assert sorted((half.parent / ".cache").iterdir()) == caches
    assert_same(weights(half), weights(whole))


@pytest.mark.parametrize("settings", [FIXED, {"task": "segmentation"}])
def test_fusions_in_mixed_precision(train, settings):
    code, folder = train(
        "amp",
        *("--segmentation.fusion", "fusion1", "fusion2", "fusion3"),
        **settings,
        trainer__precision="bf16-mixed",
        segmentation__attention_loss=0.2,
    )
    assert code == 0
    assert all(torch.isfinite(value).all() for value in weights(folder).values())


def test_random_views_cache_nothing(train):
    code, folder = train("random", **FROZEN)
    assert code == 0
    # What the masks hold is kept, their features are not.
    assert all(file.name.startswith("masks-") for file in (folder.parent / ".cache").iterdir())


# --- the loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [2, 4])
def test_a_strided_loss_is_that_of_every_nth_pixel(shapes_root, stride):
    agent, data = parts(shapes_root, segmentation__loss_stride=stride)
    agent.train()
    agent.trainer = Watched()
    batch = batch_of(data)
    found = agent.training_step(batch, 0)
    small = torch.nn.functional.interpolate(
        agent.network.head.native(agent.network.encode(batch.images)), 32 // stride, mode="bilinear"
    )
    labels = batch.labels[:, stride // 2 :: stride, stride // 2 :: stride]
    assert labels.shape == (4, 32 // stride, 32 // stride)
    torch.testing.assert_close(found["loss"], agent.loss(small, labels), rtol=1e-5, atol=1e-6)
    assert outputs_of(found, CropOutputs).logits.shape[-2:] == labels.shape[1:]


def test_attention_loss_on_a_frozen_backbone_trains_what_is_learnt(shapes_root):
    settings = {"backbone__freeze": "true", "segmentation__fusion": "fusion2"}
    agent, data = parts(shapes_root, **settings, segmentation__attention_loss=0.3)
    plain, _ = parts(shapes_root, **settings)
    agent.train()
    batch = batch_of(data)
    found = gradients(agent, batch)
    assert not [name for name in found if name.startswith("backbone.")]
    assert all(p.grad is None for p in agent.backbone.parameters())
    assert found["fusion.fusions.fusion2.mix"].abs().max() > 0
    # The head is trained by the labels alone.
    without = gradients(plain.train(), batch)
    torch.testing.assert_close(found["head.net.2.weight"], without["head.net.2.weight"])
    assert not torch.allclose(
        found["fusion.fusions.fusion2.mix"], without["fusion.fusions.fusion2.mix"]
    )


@pytest.mark.parametrize("term", ["mass", "shape", "diversity"])
def test_attention_loss_pushes_the_heads_of_unfrozen_blocks(shapes_root, term):
    settings = {"backbone__freeze": "true", "backbone__unfreeze_last": 1}
    extra = {"segmentation__attention_loss": 100, "segmentation__attention_loss_terms": term}
    plain, data = parts(shapes_root, **settings)
    agent, _ = parts(shapes_root, **settings, **extra)
    batch = batch_of(data)
    key = "backbone.net.blocks.1.attn.qkv.weight"
    before, after = gradients(plain.train(), batch), gradients(agent.train(), batch)
    assert not [name for name in after if "blocks.0." in name]
    change = (after[key] - before[key]).abs()
    queries_and_keys = slice(0, 2 * 24)
    assert change[queries_and_keys].max() > 1e-8
    assert change[2 * 24 :].max() < 1e-9  # values are no attention


def test_attention_loss_of_class_queries(shapes_root):
    settings = {"backbone__freeze": "true", "segmentation__fusion": "fusion3"}
    agent, data = parts(shapes_root, **settings, segmentation__attention_loss=0.3)
    found = gradients(agent.train(), batch_of(data))
    assert found["fusion.fusions.fusion3.queries"].abs().max() > 0


@pytest.mark.parametrize("fusion", ["fusion1", "fusion3"])
def test_an_attention_loss_judges_the_pass_that_is_trained(shapes_root, fusion):
    """It draws no dropout and moves no statistics of its own."""
    states, batches_seen = [], []
    for weight in (0, 0.3):
        settings = {"segmentation__fusion": fusion, "segmentation__attention_loss": weight}
        agent, data = parts(shapes_root, **settings)
        torch.manual_seed(0)
        gradients(agent.train(), batch_of(data))
        states.append(torch.get_rng_state())
        found = agent.network.fusion.state_dict()
        batches_seen += [int(found[name]) for name in found if "num_batches" in name]
    assert torch.equal(*states)
    assert batches_seen == ([1, 1] if fusion == "fusion1" else [])


def test_labels_are_pooled_once_for_blocks_of_one_grid(shapes_root, monkeypatch):
    settings = {"segmentation__attention_loss": 0.3, "segmentation__attention_blocks": (0, 1)}
    agent, data = parts(shapes_root, **settings, segmentation__fusion="fusion3")
    grids = []

    def counted(labels: Tensor, grid: tuple[int, int], classes: int) -> tuple[Tensor, Tensor]:
        grids.append(grid)
        return patch_shares(labels, grid, classes)

    monkeypatch.setattr("models.attention_supervision.patch_shares", counted)
    gradients(agent.train(), batch_of(data))
    assert grids == [(2, 2)]


def attention_part(agent: Segmentation, batch: Any) -> Tensor:
    """What the attention loss adds to the others in a training step."""
    logged: dict[str, Any] = {}
    agent.log = lambda name, value, **_: logged.__setitem__(name, value)  # type: ignore[assignment]
    agent.trainer = Watched()  # type: ignore[assignment]
    loss: Tensor = agent.training_step(batch, 0)["loss"].detach()
    return loss - logged["train/loss"]


def test_attention_is_compared_with_the_labels_that_lie_under_it(shapes_root):
    """Crops of 36 px are padded to 48: their nine patches are of 16 px, not of 12."""
    settings = {"data__image_size": 36, "segmentation__fusion": "fusion2"}
    agent, data = parts(shapes_root, **settings, segmentation__attention_loss=0.4)
    batch = batch_of(data)
    labels = torch.full((4, 48, 48), VOID, dtype=torch.uint8)
    labels[:, :36, :36] = batch.labels
    whole = replace(batch, images=pad_to_multiple(batch.images, 16), labels=labels)
    assert whole.images.shape[-2:] == (48, 48)
    torch.testing.assert_close(attention_part(agent, batch), attention_part(agent, whole))


@pytest.mark.parametrize("control", ["shuffled", "uniform", "local"])
def test_an_attention_loss_is_of_an_images_own_attention_whatever_a_control_shows(
    shapes_root, control
):
    settings = {"segmentation__fusion": "fusion2", "segmentation__attention_loss": 0.4}
    settings["segmentation__attention_loss_terms"] = "mass"
    plain, data = parts(shapes_root, **settings)
    other, _ = parts(shapes_root, **settings, segmentation__fusion_control=control)
    batch = batch_of(data)
    torch.testing.assert_close(attention_part(plain, batch), attention_part(other, batch))


def test_attention_learns_where_objects_are(shapes_root):
    agent, data = parts(
        shapes_root, segmentation__attention_loss=1.0, segmentation__attention_loss_terms="mass"
    )
    network = agent.train().network
    batch = batch_of(data, 8)
    optimizer = torch.optim.Adam(agent.backbone.parameters(), 3e-3)
    values = []
    for _ in range(25):
        features = network.encode(batch.images)
        (loss,) = attention_loss(
            features, Looks(), batch.labels, agent.classes, ["mass"], backbone_learns=True
        ).values()
        values.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert values[-1] < 0.7 * values[0]


def test_the_weight_of_the_attention_loss_rises(shapes_root):
    agent, data = parts(
        shapes_root,
        segmentation__fusion="fusion2",
        segmentation__attention_loss=0.4,
        segmentation__attention_loss_warmup_epochs=5,
    )
    batch, found, logged = batch_of(data), [], {}
    agent.log = lambda name, value, **_: logged.__setitem__(name, value)  # type: ignore[assignment]
    for step in (0, 4, 9, 50):
        agent.trainer = type("At", (Watched,), {"global_step": step})()
        step_loss = agent.training_step(batch, 0)["loss"].detach()
        found.append(float(step_loss - logged["train/loss"]))
    assert found[1] == pytest.approx(5 * found[0])
    assert found[2] == pytest.approx(10 * found[0])
    assert found[3] == pytest.approx(found[2])
    # Two batches a step: five epochs are over after five steps. With a third, which is a step of
    # its own at the end of an epoch, half of them are.
    for batches, weight in ((2, found[2]), (3, 0.5 * found[2])):
        watched = {"num_training_batches": batches, "accumulate_grad_batches": 2, "global_step": 4}
        agent.trainer = type("At", (Watched,), watched)()
        step_loss = agent.training_step(batch, 0)["loss"].detach()
        assert float(step_loss - logged["train/loss"]) == pytest.approx(weight)


# --- test time ------------------------------------------------------------------------------------


def test_test_images_in_windows_scales_and_mirrored(train, capsys):
    code, folder = train("plain", task="segmentation")
    assert code == 0
    seen = ["--segmentation.test_window", "32", "--segmentation.test_stride", "16"]
    seen += ["--segmentation.test_scales", "1.0", "1.5", "--segmentation.test_flip", "true"]
    assert main(["--evaluate", "plain", "--run.dir", str(folder.parent), *seen]) == 0
    found = summary(folder)
    name = "evaluate/voc12_standard/window 32, stride 16, scales 1 1.5, flip/miou"
    assert name in found, [key for key in found if "evaluate" in key]
    assert found["inference"] == "whole"
    assert "evaluate/voc12_standard/miou" not in found


def test_windows_are_of_the_test_alone(shapes_root):
    windows = {"segmentation__test_window": 32, "segmentation__test_stride": 16}
    agent, data = parts(shapes_root, **windows)
    batch = collate([data.test_set[0, index] for index in range(2)])
    images, labels = zip(*batch.items(), strict=True)
    sizes = [tuple(each.shape) for each in labels]
    losses = []
    for step, seen in ((agent.test_step, agent.inference), (agent.validation_step, WHOLE)):
        with torch.no_grad():
            losses.append(step(batch, 0)["loss"])
            logits = agent.network.logits_at(images, sizes, (), seen)
            each = [agent.loss(x[None], y[None]) for x, y in zip(logits, labels, strict=True)]
        torch.testing.assert_close(losses[-1], torch.stack(each).mean())
    assert float(losses[0]) != pytest.approx(float(losses[1]), rel=1e-3)


def test_the_judged_image_is_that_of_the_largest_scale(shapes_root):
    agent, data = parts(shapes_root, segmentation__test_scales="1.5", data__image_size=32)
    assert agent.inference.scales == (1.5,)
    x = data.test_set[0, 0].image[None]
    torch.testing.assert_close(agent.inference(agent.network, x), agent.network(x))
    assert min(data.test_set[0, 0].image.shape[-2:]) == 48
    assert min(data.val_set[0, 0].image.shape[-2:]) == 32


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"segmentation.fusion": "fusion4"}, "Did you mean fusion"),
        (
            {"segmentation.fusion_control": "shuffled"},
            "has no effect without --segmentation.fusion",
        ),
        (
            {"segmentation.fusion": "fusion1", "segmentation.fusion_steps": 2},
            "without --segmentation.fusion fusion2",
        ),
        (
            {
                "segmentation.fusion": "fusion2",
                "segmentation.fusion_edges": "tokens",
                "segmentation.fusion_control": "local",
            },
            "need no attention",
        ),
        ({"segmentation.attention_loss": 0.1, "backbone.freeze": "true"}, "nothing to train"),
        (
            {"segmentation.attention_loss": 0.1, "segmentation.attention_loss_terms": "affinity"},
            "nothing to train: affinity",
        ),
        (
            {
                "segmentation.fusion": "fusion2",
                "segmentation.fusion_control": "random_init",
                "segmentation.attention_loss": 0.1,
            },
            "a network that is not trained: choose one",
        ),
        ({"segmentation.attention_loss_terms": "mass"}, "without --segmentation.attention_loss"),
        (
            {"segmentation.test_window": 32, "segmentation.test_stride": 33},
            "never be labelled",
        ),
        ({"segmentation.test_stride": 33}, "without --segmentation.test_window"),
        ({"segmentation.test_scales": 0}, "expected at least 0.1"),
        ({"segmentation.fusion": ("fusion1", "fusion1")}, "each of them once"),
        ({"segmentation.loss_stride": 3}, "choose from '1', '2', '4', '8'"),
        ({"segmentation.loss_stride": 8, "data.image_size": 36}, "no multiple"),
        ({"data.fixed_crops": 2}, "without --data.views fixed"),
        ({"data.feature_cache": "somewhere"}, "without --data.views fixed"),
        (
            {
                "segmentation.fusion": "fusion2",
                "segmentation.fusion_control": "shuffled",
                "segmentation.test_flip": "true",
            },
            "cannot be combined",
        ),
    ],
)
def test_settings_that_cannot_be(settings, message, shapes_root, tmp_path, capsys):
    base = tiny({"task": "segmentation", "data.root": shapes_root, "run.dir": tmp_path})
    assert main(options(base | settings)) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not [path for path in Path(tmp_path).iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone__name": "resnet18"}, "ResNet has no attention"),
        (
            {
                "backbone__name": "resnet18",
                "segmentation__fusion": ...,
                "segmentation__attention_loss": 0.2,
            },
            "--segmentation.fusion and attention_loss read",
        ),
        ({"backbone__name": "swin_tiny"}, "attends within windows"),
        (
            {"segmentation__attention_blocks": 7},
            "--segmentation.attention_blocks: block [7] of a network with 2 blocks: use 0 … 1",
        ),
    ],
)
def test_fusion_where_it_cannot_be(settings, message, train, capsys):
    fused = {"task": "segmentation", "segmentation__fusion": "fusion2"}
    code, folder = train("bad", **fused | settings)
    assert code == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not folder.exists()


def test_a_cache_that_cannot_be_written_stops_before_the_run(train, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, folder = train("bad", **FIXED, data__feature_cache=tmp_path / "file" / "x")
    assert code == 2
    assert "cannot be written" in capsys.readouterr().err.replace("\n", " ")
    assert not folder.exists()


def test_layers_out_of_range(train, capsys):
    code, _ = train("bad", **FIXED, backbone__layers="0,9")
    assert code == 2
    assert "use 0 … 1" in capsys.readouterr().err.replace("\n", " ")


def test_a_fused_segmentation_is_built_without_weights_for_a_checkpoint(shapes_root):
    agent, _ = parts(shapes_root, segmentation__fusion="fusion2")
    again = build_agent(agent.settings, build_source(agent.settings), loaded=False)
    assert again.state_dict().keys() == agent.state_dict().keys()
