"""Segmentation: judged by the protocol to the pixel; frozen means frozen; runs from end to end."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import ExifTags, Image
from torch import Tensor

from agents.backbone import new_backbone
from agents.build import build_agent, build_data
from agents.segmentation import Segmentation
from agents.segmentation_loss import build_loss
from agents.segmenter import build_segmenter
from agents.sources import build_source
from callbacks.step_outputs import EvaluationOutputs, outputs_of
from config.length import resolve_for_data
from config.parsing import Command, parse
from config.resolve import resolve
from datamodules import reading
from datamodules.masked_images import collate
from datamodules.shapes import Shapes, generate
from main import main
from models.measures.segmentation import metrics
from tests.conftest import assert_same, options, parsed, stopped_after, summary, tiny, weights
from utils.text import in_units

VOID = 255


def parts(root: Path, **changed) -> tuple[Segmentation, object]:
    changed = {key.replace("__", "."): value for key, value in changed.items()}
    command = parse(options(tiny({"task": "segmentation", "data.root": root, **changed})))
    assert isinstance(command, Command)
    hparams = resolve_for_data(resolve(command.hparams), 24, on_gpu=False)
    torch.manual_seed(0)
    source = build_source(hparams)
    agent, data = build_agent(hparams, source), build_data(hparams, source)
    data.setup("fit")
    assert isinstance(agent, Segmentation)
    agent.log = agent.log_dict = lambda *_, **__: None  # type: ignore[assignment]
    return agent.double().eval(), data


# --- the protocols, against a reference of loops and NumPy ---------------------------------------


def bilinear(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """`(C, h, w)` to `(C, height, width)`, align_corners False, by its definition."""

    def weights(inputs: int, outputs: int) -> np.ndarray:
        matrix = np.zeros((outputs, inputs))
        for o in range(outputs):
            source = max(0.0, (o + 0.5) * inputs / outputs - 0.5)
            low = min(int(source), inputs - 1)
            high = min(low + 1, inputs - 1)
            matrix[o, low] += 1 - (source - low)
            matrix[o, high] += source - low
        return matrix

    return weights(x.shape[1], height) @ x @ weights(x.shape[2], width).T


def reference_confusion(agent: Segmentation, pairs, protocol: str, size: int) -> np.ndarray:
    counts = np.zeros((len(agent.classes),) * 2, np.int64)
    for file, mask in pairs:
        image, labels = Image.open(file).convert("RGB"), np.array(Image.open(mask)).astype(int)
        if protocol == "voc12_standard":
            scale = size / min(image.size)
            shape = tuple(
                size if side == min(image.size) else int(size * side / min(image.size))
                for side in image.size
            )
            assert abs(shape[0] / image.size[0] - scale) < 0.02
            image = image.resize(shape, Image.Resampling.BILINEAR)
        else:
            image = image.resize((224, 224), Image.Resampling.BILINEAR)
            small = Image.fromarray(labels.astype(np.uint8)).resize((224, 224), 0)
            labels = np.array(small).astype(int)
            labels[labels == VOID] = 0
        pixels = np.array(image)
        h, w = pixels.shape[:2]
        padded = np.empty((-(-h // 16) * 16, -(-w // 16) * 16, 3), np.uint8)
        padded[:] = (124, 116, 104)
        padded[:h, :w] = pixels
        with torch.no_grad():
            given = torch.from_numpy(padded).permute(2, 0, 1)[None]
            logits = agent.network.head(agent.backbone(given), padded.shape[:2])[0, :, :h, :w]
        guessed = bilinear(logits.float().double().numpy(), *labels.shape).argmax(0)
        for truth, guess in zip(labels.ravel(), guessed.ravel(), strict=True):
            if truth != VOID:
                counts[truth, guess] += 1
    return counts


@pytest.mark.parametrize("protocol", ["voc12_standard", "voc12_seed224"])
def test_protocols_equal_a_numpy_reference(shapes_root, protocol):
    agent, data = parts(shapes_root, segmentation__protocol=protocol, data__image_size=40)
    for batch in data.test_dataloader():
        agent.test_step(batch, 0)
    agent.on_test_epoch_end()
    pairs = Shapes(str(shapes_root)).pairs("val")
    expected = reference_confusion(agent, pairs, protocol, 40)
    found = agent.confusion["test"].numpy()
    assert found.dtype == np.int64
    assert found.sum() == expected.sum()
    # Rounding may decide a tie of two logits otherwise.
    assert np.abs(found - expected).sum() <= 4
    assert len(np.unique(found.argmax(1))) >= 1


def naive_numbers(counts: np.ndarray) -> dict[str, float]:
    hit, truth, guess = counts.diagonal(), counts.sum(1), counts.sum(0)
    there = truth + guess > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = (hit / (truth + guess - hit))[there]
        precision = np.nan_to_num(hit / guess)[there]
        recall = np.nan_to_num(hit / truth)[there]
        f1 = (2 * hit / (truth + guess))[there]
    return {
        "miou": iou.mean(),
        "accuracy": hit.sum() / counts.sum(),
        "precision": precision.mean(),
        "recall": recall.mean(),
        "f1": f1.mean(),
    }


def random_judgement(absent: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    kept = torch.tensor([label for label in range(6) if label not in absent])
    prediction = kept[torch.randint(0, len(kept), (4, 20, 30), generator=generator)]
    labels = kept[torch.randint(0, len(kept), (4, 20, 30), generator=generator)]
    labels[torch.rand(4, 20, 30, generator=generator) < 0.2] = VOID
    return prediction, labels


@pytest.mark.parametrize("absent", [(), (3,), (0, 5)])
def test_numbers_equal_numpys(absent):
    prediction, labels = random_judgement(absent)
    found = metrics(6)
    found.update(prediction, labels)
    values = found.compute()
    valid = labels != VOID
    counts = np.zeros((6, 6), np.int64)
    np.add.at(counts, (labels[valid].numpy(), prediction[valid].numpy()), 1)
    assert np.array_equal(values["confusion"].numpy(), counts)
    for name, expected in naive_numbers(counts).items():
        assert float(values[name]) == pytest.approx(expected, abs=1e-6), name
    per_image = [
        naive_numbers(confusion_of(p, t))["miou"] for p, t in zip(prediction, labels, strict=True)
    ]
    assert float(values["miou"]) != pytest.approx(np.mean(per_image), abs=1e-6)


def confusion_of(prediction: Tensor, labels: Tensor) -> np.ndarray:
    counts = np.zeros((6, 6), np.int64)
    valid = labels != VOID
    np.add.at(counts, (labels[valid].numpy(), prediction[valid].numpy()), 1)
    return counts


def test_numbers_do_not_depend_on_batches_or_void():
    prediction, labels = random_judgement()
    whole, split = metrics(6), metrics(6)
    whole.update(prediction, labels)
    for start, stop in ((0, 1), (1, 4)):
        split.update(prediction[start:stop], labels[start:stop])
    changed = torch.where(labels == VOID, torch.randint(0, 6, labels.shape), prediction)
    other = metrics(6)
    other.update(changed, labels)
    for name, value in whole.compute().items():
        assert torch.equal(value, split.compute()[name]), name
        assert torch.equal(value, other.compute()[name]), name


def test_the_judgement_of_an_image_does_not_depend_on_its_batch(shapes_root):
    agent, data = parts(shapes_root, data__image_size=40)
    samples = [data.test_set[(0, index)] for index in range(6)]
    together = agent.validation_step(collate(samples), 0)
    alone = [agent.validation_step(collate([sample]), 0) for sample in samples]
    losses = torch.stack([each["loss"] for each in alone])
    torch.testing.assert_close(together["loss"], losses.mean(), rtol=1e-6, atol=0)
    predicted = [outputs_of(each, EvaluationOutputs).predictions for each in (together, *alone)]
    for one, each in zip(predicted[0], predicted[1:], strict=True):
        assert torch.equal(one, each[0])


def test_class_weights_are_of_training_and_not_of_judgement(shapes_root):
    agent, data = parts(shapes_root)
    batch = collate([data.test_set[(0, index)] for index in range(3)])
    plain = agent.validation_step(batch, 0)["loss"]
    class_weights = torch.linspace(0, 1, len(agent.classes))
    agent.training_loss = build_loss(agent.settings.segmentation, class_weights)
    assert torch.equal(agent.validation_step(batch, 0)["loss"], plain)


def test_a_checkpoint_holds_the_parts_under_their_own_names(shapes_root):
    settings = {"segmentation__fusion": "fusion2", "segmentation__fusion_control": "random_init"}
    agent, _ = parts(shapes_root, **settings, backbone__freeze="true")
    # As every checkpoint so far has them, also those of agents that had the parts themselves.
    state = {
        f"{name}.{key}": value
        for name in ("backbone", "head", "fusion")
        for key, value in getattr(agent.network, name).state_dict().items()
    }
    assert_same(dict(agent.state_dict()), state)
    other = build_agent(agent.settings, build_source(agent.settings), loaded=False).double().eval()
    images = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8)
    with torch.no_grad():
        expected = agent.network(images)
        assert not torch.equal(other.network(images), expected)
        other.load_state_dict(state)
        assert torch.equal(other.network(images), expected)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({key: v for key, v in state.items() if key.startswith("head.")})


# --- frozen -------------------------------------------------------------------------------------


def digest(module: torch.nn.Module) -> str:
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        total.update(name.encode() + value.cpu().numpy().tobytes())
    return total.hexdigest()


@pytest.mark.parametrize("backbone", ["vit_tiny", "resnet18"])
def test_a_frozen_backbone_stays_as_it_was(train, backbone, monkeypatch):
    changed = {"backbone__name": backbone}
    digests, modes = [], []
    original = Segmentation.training_step

    def watched(self, *rest):
        digests.append(digest(self.backbone))
        modes.append(any(module.training for module in self.backbone.modules()))
        return original(self, *rest)

    monkeypatch.setattr(Segmentation, "training_step", watched)
    code, folder = train("frozen", task="segmentation", backbone__freeze="true", **changed)
    assert code == 0
    state = weights(folder)
    kept = torch.load(folder / "checkpoints" / "backbone.pth", weights_only=True)
    total = hashlib.sha256()
    for name, value in sorted(kept.items()):
        total.update(f"net.{name}".encode() + value.numpy().tobytes())
    assert set(digests) == {total.hexdigest()}
    assert not any(modes)  # eval mode, in the epoch after a validation too
    optimizer = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    groups = optimizer["optimizer_states"][0]["param_groups"]
    head = sum(1 for key in state if key.startswith("head.") and "running" not in key)
    assert sum(len(group["params"]) for group in groups) == head - 1  # num_batches_tracked


def test_gradients_reach_what_is_unfrozen_and_nothing_else(shapes_root):
    agent, data = parts(
        shapes_root, backbone__freeze="true", backbone__unfreeze_last=1, data__batch_size=4
    )
    batch = next(iter(data.train_dataloader()))
    agent.loss(agent.network(batch.images), batch.labels).backward()
    parameters = agent.network.named_parameters()
    trained = {name for name, p in parameters if p.grad is not None and p.grad.any()}
    assert all(
        name.startswith(("head.", "backbone.net.blocks.1.", "backbone.net.norm."))
        for name in trained
    )
    assert any("blocks.1" in name for name in trained)


def test_the_head_learns_at_its_own_rate(train):
    code, folder = train(
        "rates", task="segmentation", segmentation__head_lr_multiplier=10, optim__lr=1e-4
    )
    assert code == 0
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    rates = [group["initial_lr"] for group in state["optimizer_states"][0]["param_groups"]]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-3, 1e-3])


# --- runs ---------------------------------------------------------------------------------------


def test_a_run_trains_chooses_and_tests_once(train, capsys):
    code, folder = train("first", task="segmentation", data__val_fraction=0.3)
    assert code == 0
    found = summary(folder)
    for name in ("miou", "accuracy", "f1", "precision", "recall", "loss"):
        assert found[f"test/{name}"] >= 0
        assert f"val/{name}" in found
    classes = [name for name in found if name.startswith("test/iou/")]
    assert found["test/miou"] == pytest.approx(np.mean([found[name] for name in classes]))
    said = capsys.readouterr().out
    assert "Test mIoU" in said
    assert "voc12_standard" in said
    assert "--predict first" in said
    pixels = int(np.load(folder / "test_counts.npz")["rows"][:, 3].sum())
    assert f"over {in_units(pixels)}pixels" in " ".join(found["in_words"])
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    parts = {key.partition(".")[0] for key in best["state_dict"]}
    assert parts == {"backbone", "head"}  # nothing is kept twice
    saved = yaml.safe_load((folder / "hparams.yaml").read_text())
    assert "barlow_twins" not in saved
    assert saved["segmentation"]["head"] == "setr_naive"


def test_without_held_out_images_the_last_checkpoint_is_tested(train):
    code, folder = train("last", task="segmentation", data__val_fraction=0)
    assert code == 0
    assert not (folder / "checkpoints" / "best.ckpt").exists()
    assert "test/miou" in summary(folder)
    assert "val/miou" not in summary(folder)


def test_the_whole_comes_out_the_same_after_an_interruption(train):
    shared = {"task": "segmentation", "backbone__drop_path": 0.3, "data__val_fraction": 0.3}
    _, whole = train("whole", **shared)
    with stopped_after(3):
        code, half = train("half", **shared)
    assert code == 130
    assert main(["--run.resume", "half", "--run.dir", str(half.parent)]) == 0
    assert_same(weights(half), weights(whole))
    assert summary(half)["test/miou"] == summary(whole)["test/miou"]


def test_a_run_that_stopped_before_its_test_is_tested_on_resume(train):
    _, folder = train("first", task="segmentation")
    found = summary(folder)
    kept = {k: v for k, v in found.items() if not k.startswith("test/")}
    (folder / "summary.json").write_text(json.dumps(kept | {"status": "interrupted"}))
    assert main(["--run.resume", "auto", "--run.dir", str(folder.parent)]) == 0
    assert summary(folder)["test/miou"] == found["test/miou"]
    assert summary(folder)["protocol"] == "voc12_standard"


def test_mixed_precision_and_accumulation(train):
    code, folder = train(
        "mixed",
        task="segmentation",
        trainer__precision="bf16-mixed",
        trainer__accumulate=2,
        trainer__max_epochs=1,
    )
    assert code == 0
    assert "test/miou" in summary(folder)


def test_early_stopping_stops_when_the_miou_is_stuck(train):
    code, folder = train(
        "stuck",
        task="segmentation",
        data__val_fraction=0.3,
        trainer__max_epochs=9,
        optim__lr=0.0,
        segmentation__head="linear",  # nothing else in it may change
        backbone__freeze="true",
        callbacks__early_stopping__enabled="true",
        callbacks__early_stopping__patience=2,
    )
    assert code == 0
    assert summary(folder)["epochs"] == 3
    assert "test/miou" in summary(folder)


def test_a_pretrained_run_gives_its_backbone(train):
    _, folder = train("pretrained")
    code, other = train(
        "head", task="segmentation", backbone__freeze="true", backbone__weights="run:pretrained"
    )
    assert code == 0
    kept = (
        torch.load(f / "checkpoints" / "backbone.pth", weights_only=True) for f in (folder, other)
    )
    assert_same(*kept)
    assert summary(other)["transductive"] is False
    found = summary(folder) | {"transductive": True}
    (folder / "summary.json").write_text(json.dumps(found))
    train(
        "marked",
        task="segmentation",
        backbone__weights="run:pretrained",
        backbone__freeze="true",
        trainer__max_epochs=1,
    )
    assert summary(folder.parent / "marked")["transductive"] is True


def test_deeplab_on_a_resnet_trains(train):
    code, folder = train(
        "deeplab",
        task="segmentation",
        backbone__name="resnet50",
        backbone__output_stride=8,
        backbone__freeze="true",
        segmentation__head="deeplabv3",
        trainer__max_steps=2,
        trainer__limit_val_batches=0,
    )
    assert code == 0
    assert summary(folder)["steps"] == 2


def test_losses_are_summed_from_the_command_line(train, capsys):
    words = [
        "--segmentation.loss",
        "cross_entropy",
        "dice",
        "--segmentation.loss_weights",
        "1",
        "2",
    ]
    code, folder = train("sum", *words, task="segmentation", trainer__max_steps=1)
    assert code == 0
    saved = yaml.safe_load((folder / "hparams.yaml").read_text())["segmentation"]
    assert (saved["loss"], saved["loss_weights"]) == (["cross_entropy", "dice"], [1.0, 2.0])
    assert train("few", "--segmentation.loss_weights", "1", "2", task="segmentation")[0] == 2
    assert "one weight for each loss" in capsys.readouterr().err
    assert train("odd", "--segmentation.loss", "dise", task="segmentation")[0] == 2
    assert "Did you mean dice?" in capsys.readouterr().err


# --- evaluate -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_evaluation_repeats_the_test(precision, train):
    settings = {"task": "segmentation", "data__val_fraction": 0.3}
    _, folder = train("first", trainer__precision=precision, **settings)
    again = ["--evaluate", "first", "--run.dir", str(folder.parent)]
    for more in ([], ["--trainer.accelerator", "auto", "--data.num_workers", "1"]):
        assert main([*again, *more]) == 0
        assert sum("evaluate/" in name and "loss" in name for name in summary(folder)) == 1
    other = "bf16-mixed" if precision == "32-true" else "32-true"
    assert main([*again, "--trainer.precision", other]) == 0
    found = summary(folder)
    assert f"evaluate/voc12_standard/trainer.precision {other}/loss" in found
    assert found["evaluate/voc12_standard/loss"] == pytest.approx(found["test/loss"], rel=1e-6)
    assert found["evaluate/voc12_standard/miou"] == pytest.approx(found["test/miou"], rel=1e-6)


def test_a_run_in_float16_is_judged_where_there_is_none(train, said):
    _, folder = train("first", task="segmentation", data__val_fraction=0.3)
    file = folder / "hparams.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["trainer"]["precision"] = "16-mixed"  # as of a run on a GPU
    file.write_text(yaml.safe_dump(settings))
    assert main(["--evaluate", "first", "--run.dir", str(folder.parent)]) == 0
    found = summary(folder)
    name = "evaluate/voc12_standard/trainer.precision 32-true/miou"
    assert found[name] == pytest.approx(found["test/miou"], rel=1e-6)
    assert "evaluate/voc12_standard/miou" not in found
    assert "precision: this machine has no 16-mixed and uses 32-true." in said


def test_the_other_protocol_has_its_own_name(train, capsys):
    _, folder = train("first", task="segmentation", data__val_fraction=0.3)
    runs = ["--run.dir", str(folder.parent)]
    assert main(["--evaluate", "first", *runs]) == 0
    found = summary(folder)
    assert found["evaluate/voc12_standard/miou"] == pytest.approx(found["test/miou"])
    assert main(["--evaluate", "first", "--segmentation.protocol", "voc12_seed224", *runs]) == 0
    found = summary(folder)
    assert "evaluate/voc12_seed224/miou" in found
    assert found["evaluate/voc12_standard/miou"] == pytest.approx(found["test/miou"])
    saved = yaml.safe_load((folder / "hparams.yaml").read_text())
    assert saved["segmentation"]["protocol"] == "voc12_standard"


def test_data_that_moved_is_asked_for(tmp_path, train, capsys):
    generate(tmp_path / "data", 16, 4)
    code, folder = train(
        "first",
        task="segmentation",
        data__name="voc",
        data__root=tmp_path / "data",
        trainer__max_steps=1,
    )
    assert code == 0
    (tmp_path / "data").rename(tmp_path / "moved")
    runs = ["--run.dir", str(folder.parent)]
    assert main(["--evaluate", "first", *runs]) == 2
    assert "--data.root" in capsys.readouterr().err
    assert main(["--evaluate", "first", "--data.root", str(tmp_path / "moved"), *runs]) == 0


def test_an_evaluation_that_fails_leaves_no_processes(train, monkeypatch, processes_end):
    _, folder = train("first", task="segmentation", trainer__max_steps=1)

    def broken(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(Segmentation, "test_step", broken)
    words = ["--evaluate", "first", "--run.dir", str(folder.parent), "--data.num_workers", "1"]
    with pytest.raises(RuntimeError, match="broken"):
        main(words)


def test_results_on_other_images_have_their_own_name(train, tmp_path):
    generate(tmp_path / "other data", 16, 4)
    _, folder = train("first", task="segmentation", data__val_fraction=0.3)
    again = ["--evaluate", "first", "--run.dir", str(folder.parent)]
    assert main([*again, "--data.num_workers", "1"]) == 0
    found = {name: value for name, value in summary(folder).items() if "evaluate/" in name}
    assert found["evaluate/voc12_standard/miou"] == pytest.approx(summary(folder)["test/miou"])
    for words, name in (
        (["--data.root", str(tmp_path / "other data")], "data.root other data"),
        (["--trainer.limit_test_batches", "1"], "trainer.limit_test_batches 1"),
        (
            ["--trainer.limit_test_batches", "2", "--segmentation.test_flip", "true"],
            "flip/trainer.limit_test_batches 2",
        ),
    ):
        assert main([*again, *words]) == 0
        after = summary(folder)
        assert f"evaluate/voc12_standard/{name}/miou" in after
        assert {key: after[key] for key in found} == found


# --- predict ------------------------------------------------------------------------------------


def test_any_image_is_labelled(train, tmp_path, capsys):
    _, folder = train("first", task="segmentation", data__image_size=40)
    images = tmp_path / "photos"
    (images / "deep").mkdir(parents=True)
    Image.new("RGB", (61, 33)).save(images / "a.jpg")
    Image.new("L", (20, 90)).save(images / "deep" / "a.png")
    (images / "broken.jpg").write_text("no image")
    (images / "notes.txt").write_text("no image")
    runs = ["--run.dir", str(folder.parent)]
    assert main(["--predict", "first", "--images", str(images), *runs]) == 0
    said = capsys.readouterr().out
    assert "2 images labelled" in said
    assert "1 file skipped (unreadable)" in said
    assert "1 file skipped (no images)" in said
    out = folder / "predictions" / "photos"
    for name, size in (("a.jpg", (61, 33)), ("deep/a.png", (20, 90))):
        with Image.open(out / "labels" / f"{name}.png") as labels:
            assert labels.mode == "P"
            assert labels.size == size
            assert set(np.unique(np.array(labels))) <= set(range(9))
            assert labels.getpalette()[3:6] == [128, 0, 0]  # type: ignore[index]
        with Image.open(out / "overlays" / f"{name}.jpg") as overlay:
            assert overlay.size == size


def test_predictions_lie_as_their_images_are_displayed(train, tmp_path, monkeypatch):
    _, folder = train("first", task="segmentation", data__image_size=40)
    images = tmp_path / "photos"
    images.mkdir()
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 255, (6, 9, 3), np.uint8).repeat(10, 0).repeat(10, 1)
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = 6
    Image.fromarray(blocks).save(images / "phone.png", exif=tags)
    upright = Image.fromarray(blocks).transpose(Image.Transpose.ROTATE_270)
    upright.save(images / "upright.png")
    words = ["--predict", "first", "--images", str(images), "--run.dir", str(folder.parent)]
    for largest in (reading.MAX_PIXELS, 60 * 90 // 4):
        monkeypatch.setattr(reading, "MAX_PIXELS", largest)
        assert main(words) == 0
        out = folder / "predictions" / "photos"
        labels, others = (
            np.array(Image.open(out / "labels" / f"{name}.png.png"))
            for name in ("phone", "upright")
        )
        assert labels.shape == (90, 60)  # also where the image was reduced to be read
        assert np.array_equal(labels, others)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda place: place.mkdir(), "none of 0 files is an image"),
        (lambda place: (place.mkdir(), (place / "a.txt").write_text("x")), "none of 1 file is"),
        (lambda place: (place.mkdir(), (place / "a.jpg").write_text("x")), "None of 1 file could"),
        (lambda place: None, "no such file or folder"),
    ],
)
def test_nothing_to_label_is_explained(train, tmp_path, capsys, make, message):
    _, folder = train("first", task="segmentation", trainer__max_steps=1)
    make(tmp_path / "place")
    words = ["--predict", "first", "--images", str(tmp_path / "place")]
    assert main([*words, "--run.dir", str(folder.parent)]) == 2
    assert message in capsys.readouterr().err


def test_only_segmentations_predict(train, image_folder, capsys):
    _, folder = train("twins", trainer__max_steps=1)
    words = ["--predict", "twins", "--images", str(image_folder), "--run.dir", str(folder.parent)]
    assert main(words) == 2
    assert "labels nothing" in capsys.readouterr().err
    assert main(words[:2]) == 2


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data__name": "image_folder"}, "has no masks; segmentation works with shapes, voc"),
        ({"data__name": "voc", "data__split": "all"}, "which train and trainaug have"),
        ({"data__name": "image_folder", "data__split": "trainaug"}, "only voc has it"),
        ({"trainer__chunk_size": 2}, "no effect on task segmentation"),
        ({"barlow_twins__lambd": 1.0}, "no effect on task segmentation"),
        ({"callbacks__cross_correlation__num_samples": 9}, "no effect on task segmentation"),
        ({"segmentation__head": "setr_nave"}, "Did you mean setr_naive?"),
        ({"segmentation__head": "setr_mla"}, "reads 4 layers"),
        ({"segmentation__head_weights": "nowhere.pth"}, "no weight file"),
        ({"segmentation__protocol": "voc"}, "voc12_standard"),
    ],
)
def test_impossible_settings_stop_at_once(train, image_folder, capsys, changed, message):
    extra = {"data__root": image_folder} if changed.get("data__name") == "image_folder" else {}
    code, folder = train("bad", task="segmentation", **changed, **extra)
    assert code == 2
    assert message in capsys.readouterr().err
    assert not folder.exists()


def test_a_foreign_label_space_stops_the_run_with_the_file(train, tmp_path, capsys):
    folder = generate(tmp_path / "data", 16, 4)
    masks = sorted((folder / "SegmentationClass").iterdir())
    for mask in masks:
        labels = np.array(Image.open(mask))
        labels[0, 0] = 170
        Image.fromarray(labels).save(mask)
    for workers in (0, 1):
        code, _ = train(
            f"foreign{workers}",
            task="segmentation",
            data__root=tmp_path / "data",
            data__num_workers=workers,
        )
        assert code == 2
        said = capsys.readouterr().err
        assert "has labels [170]" in said
        assert "another data set" in said
        assert "Traceback" not in said


def test_images_without_masks_are_explained(train, tmp_path, capsys):
    folder = generate(tmp_path / "data", 16, 4)
    (folder / "SegmentationClass").rename(folder / "elsewhere")
    code, _ = train("images", task="segmentation", data__name="voc", data__root=tmp_path / "data")
    assert code == 2
    assert "has no SegmentationClass" in capsys.readouterr().err


def test_head_weights_of_another_class_count_are_refused(train, tmp_path, capsys):
    torch.manual_seed(0)
    from models.heads.setr import SETRNaive

    torch.save(SETRNaive((24,), (16,), 21).state_dict(), tmp_path / "head.pth")
    code, _ = train(
        "classes", task="segmentation", segmentation__head_weights=tmp_path / "head.pth"
    )
    assert code == 2
    said = capsys.readouterr().err
    assert "(21, 256, 1, 1) there and (9, 256, 1, 1) here" in said


@pytest.mark.parametrize("seen", [{"test_scales": "0.5"}, {"test_window": "112"}])
def test_a_backbone_of_one_size_is_shown_no_other(shapes_root, seen):
    """It would be found out in the test, after the training."""
    words = {f"segmentation.{name}": value for name, value in seen.items()}
    settings = {"task": "segmentation", "segmentation.protocol": "voc12_seed224", **words}
    hparams = resolve(parsed(options({**settings, "data.root": shapes_root})))
    backbone = new_backbone(hparams)
    backbone.fixed_side = 224
    with pytest.raises(ValueError, match=r"takes images of 224 x 224 px only: .*test_window"):
        build_segmenter(hparams, backbone, 9)
