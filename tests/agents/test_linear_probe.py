"""Probes: what is held out, what is touched, and what is told."""

import re
import shlex
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from agents.linear_probe import LinearProbe
from callbacks.online_probe import OnlineProbe
from config.hparams import Hparams
from config.parsing import Command, parse
from datamodules.cifar10 import CIFAR10
from datamodules.image_folder import ImageFolder
from datamodules.labelled import LabelledFiles
from datamodules.linear_probe import LabelledDataModule, ProbeBatch
from datamodules.loading import Loading
from main import main
from models.backbones.vit import vit_tiny
from models.measures.knn import knn_accuracy, knn_scores
from tests.conftest import summary, weights
from utils.distributed import gather_rows
from utils.metrics_file import read_metrics
from utils.stopwatch import Stopwatch


def colours(folder, classes=3, each=8, split=("train", "val"), names=None):
    """Folders of classes that colour tells apart."""
    rng = np.random.default_rng(0)
    for part in split:
        for label in range(classes):
            place = folder / part / (names or [f"class{i}" for i in range(classes)])[label]
            place.mkdir(parents=True)
            for index in range(each):
                pixels = rng.integers(0, 60, (32, 32, 3), np.uint8)
                pixels[..., label % 3] += 150
                Image.fromarray(pixels).save(place / f"{part}{index:02d}.png")
    return folder


@pytest.fixture
def probe(train, tmp_path):
    root = colours(tmp_path / "colours")

    def run(name="probe", **changed):
        settings = {
            "task": "linear_probe",
            "data__name": "image_folder",
            "data__root": root,
            "trainer__max_epochs": 20,
            "data__val_fraction": 0.25,
            "optim__lr": 0.05,
        }
        return train(name, **(settings | changed))

    return run


def test_colours_are_told_apart_and_the_test_is_touched_once(probe, monkeypatch, capsys):
    tests = []
    original = LinearProbe.on_test_epoch_end
    monkeypatch.setattr(
        LinearProbe, "on_test_epoch_end", lambda self: tests.append(1) or original(self)
    )
    code, folder = probe()
    assert code == 0
    found = summary(folder)
    for name in ("linear_accuracy", "linear_accuracy_last", "knn_accuracy"):
        assert found[f"test/{name}"] > 0.85, name
    assert tests == [1]
    assert "Linear probe: test accuracy" in capsys.readouterr().out
    rows = read_metrics(folder / "metrics.csv")
    assert not any(key.startswith("test/") for row in list(rows.values())[:-1] for key in row)


def test_probes_in_double_precision(probe, train, tmp_path):
    code, folder = probe(trainer__precision="64-true", trainer__max_epochs=2)
    assert code == 0
    assert {"test/linear_accuracy", "test/knn_accuracy"} <= summary(folder).keys()
    shared = {"data__name": "image_folder", "data__root": tmp_path / "colours", **ONLINE}
    code, folder = train("online", **shared | {"trainer__precision": "64-true"})
    found = summary(folder)
    assert (code, found["readout_failures"]) == (0, {})
    assert "val/linear_accuracy" in found


def test_best_and_last_are_two_classifiers(probe, monkeypatch):
    # A rate that forgets: the best checkpoint is not the last.
    code, folder = probe(optim__lr=20.0, optim__schedule="constant", trainer__max_epochs=6)
    assert code == 0
    best, last = (
        weights(folder, name)["classifier.1.weight"] for name in ("best.ckpt", "last.ckpt")
    )
    assert not torch.equal(best, last)
    assert {"test/linear_accuracy", "test/linear_accuracy_last"} <= summary(folder).keys()


def test_the_backbone_is_frozen_whatever_it_is_made_of(train, tmp_path):
    code, folder = train(
        "probe",
        task="linear_probe",
        data__name="image_folder",
        data__root=colours(tmp_path / "colours"),
        backbone__name="resnet18",
        backbone__stem="cifar",
    )
    assert code == 0
    first, last = (weights(folder, name) for name in ("best.ckpt", "last.ckpt"))
    for key, value in first.items():
        if key.startswith("backbone"):
            assert torch.equal(value, last[key]), key
    assert int(last["backbone.net.bn1.num_batches_tracked"]) == 0


def test_the_three_parts_do_not_overlap(tmp_path):
    from datamodules.image_folder import ImageFolder

    source = ImageFolder(str(colours(tmp_path, each=20)))
    data = LabelledDataModule(source, 32, Loading(4), val_fraction=0.3)
    data.setup("fit")
    parts = {name: set(files.files) for name, files in data.splits.items()}
    assert not parts["train"] & parts["val"]
    assert not (parts["train"] | parts["val"]) & parts["test"]
    assert len(parts["train"]) + len(parts["val"]) == len(parts["test"]) == 60
    for files in data.splits.values():
        for file, label in zip(files.files, files.labels, strict=True):
            assert file.parent.name == files.classes[label]
    assert not data.transductive


class Shown:
    """A data module whose images come last first; `splits` as the real one's."""

    def __init__(self, **splits):
        self.pixels = {name: images for name, (images, _) in splits.items()}
        self.splits = {
            name: LabelledFiles(tuple(map(str, labels)), tuple(labels), ("a", "b"))
            for name, (_, labels) in splits.items()
        }

    def images(self, split):
        rows = enumerate(self.pixels[split])
        return [(row[None], torch.tensor([i]), []) for i, row in rows][::-1]


def shown_to(probe_of: Shown, **changed):
    """An agent that sees these images, and what it logs."""
    hparams = Hparams(task="linear_probe")
    hparams.optim.lr = 0.1
    for name, value in changed.items():
        setattr(hparams.probe, name, value)
    torch.manual_seed(0)
    backbone = vit_tiny(image_size=32, patch_size=16, depth=1, embed_dim=12, num_heads=2)
    agent = LinearProbe(backbone, ("a", "b"), hparams)
    logged = {}
    agent.log = lambda name, value, **_: logged.__setitem__(name, value)
    rate = [SimpleNamespace(param_groups=[{"lr": 0.1}])]
    agent.trainer = SimpleNamespace(datamodule=probe_of, optimizers=rate)
    return agent, logged


def pixels(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)


def test_trained_on_images_and_mirror_images_judged_on_images():
    images, labels = pixels(6), torch.tensor([0, 1, 0, 1, 1, 0])
    agent, _ = shown_to(Shown(train=(images, labels.tolist()), val=(images, labels.tolist())))
    chosen, mirrored = torch.tensor([4, 1, 0]), torch.tensor([1, 0, 1])
    batch = ProbeBatch(chosen, labels[chosen], mirrored)
    both = torch.stack([images[4].flip(-1), images[1], images[0].flip(-1)])
    for step, given in ((agent.train().training_step, both), (agent.validation_step, images)):
        found = step(batch, 0)["loss"]
        features = agent.backbone(given if len(given) == 3 else given[chosen]).pooled
        expected = F.cross_entropy(agent.classifier(features), labels[chosen])
        torch.testing.assert_close(found, expected)
        agent.eval()


@pytest.mark.parametrize(
    ("k", "temperature", "right"),
    [(1, 0.07, 1.0), (3, 1e-5, 1.0), (3, 10.0, 0.0)],
    ids=["nearest", "the nearest counts", "all count alike"],
)
def test_the_bank_is_all_training_images_with_their_votes_as_set(k, temperature, right):
    image = pixels(1)  # held out, and so known; of the others none is of its class
    data = Shown(train=(pixels(5), [0] * 5), val=(image, [1]), test=(image, [1]))
    agent, logged = shown_to(data, kind="knn", k=k, temperature=temperature)
    agent.on_test_epoch_end()
    assert logged == {"test/knn_accuracy": right}


@pytest.mark.parametrize(("k", "temperature", "right"), [(1, 0.07, 1), (3, 1e-5, 1), (3, 10, 0)])
def test_the_online_probe_asks_what_it_knows_about_held_out_images(k, temperature, right):
    shown = pixels(2)
    # Five times the first image, of class 0; the second one, of class 1, is the one held out, too.
    found = (shown[[0] * 5 + [1]], torch.tensor([0] * 5 + [1])), (shown[1:], torch.tensor([1]))
    data = SimpleNamespace(labelled_examples=lambda *_: (*found, ("a", "b")))
    agent, _ = shown_to(Shown())
    trainer = SimpleNamespace(datamodule=data, precision_plugin=None)
    online = OnlineProbe(1, 7, "both", k, temperature)
    for _ in range(60):  # the linear classifier goes on from where it was
        scores = online.measure(trainer, agent)
    assert scores == {"val/knn_accuracy": right, "val/linear_accuracy": 1}


def test_an_image_is_mirrored_in_some_epochs_and_not_in_others(tmp_path):
    data = LabelledDataModule(ImageFolder(str(colours(tmp_path))), 32, Loading(12), 0.0)
    data.setup("fit")
    seen = {}
    for epoch in range(8):
        data.trainer = SimpleNamespace(
            fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=2 * epoch - 1))
        )
        for batch in data.train_dataloader():
            pairs = zip(batch.indices.tolist(), batch.mirrored.tolist(), strict=True)
            for index, mirrored in pairs:
                seen.setdefault(index, []).append(mirrored)
    assert len(seen) == 24
    assert sum(set(each) == {0, 1} for each in seen.values()) > 20


@pytest.mark.parametrize(
    ("kind", "absent"), [("knn", "linear_accuracy"), ("linear", "knn_accuracy")]
)
def test_either_kind_alone(probe, kind, absent):
    untrained = {"trainer__max_epochs": ..., "optim__lr": ...} if kind == "knn" else {}
    code, folder = probe(**{"probe__kind": kind, "trainer__max_epochs": 2, **untrained})
    assert code == 0
    found = summary(folder)
    assert found["status"] == "finished"
    assert f"test/{absent}" not in found
    assert any(key.startswith("test/") for key in found)
    assert (folder / "checkpoints" / "best.ckpt").exists() is (kind == "linear")
    if kind == "knn":
        place = ["--run.dir", str(folder.parent)]
        assert main(["--evaluate", folder.name, *place]) == 0
        assert summary(folder)["evaluate/knn_accuracy"] == found["test/knn_accuracy"]
        assert main(["--run.resume", folder.name, *place]) == 0
        assert summary(folder)["test/knn_accuracy"] == found["test/knn_accuracy"]


def test_interrupted_probes_go_on(probe, train):
    _, folder = probe(trainer__max_epochs=4)
    words = ["--run.resume", "probe", "--run.dir", str(folder.parent), "--trainer.max_epochs", "6"]
    assert main(words) == 0
    _, whole = probe("whole", trainer__max_epochs=6, optim__schedule="constant")
    assert summary(folder)["steps"] == summary(whole)["steps"]


def test_a_finished_probe_can_be_judged_again(probe, capsys):
    _, folder = probe(trainer__max_epochs=3)
    assert main(["--evaluate", "probe", "--run.dir", str(folder.parent)]) == 0
    found = summary(folder)
    assert found["evaluate/linear_accuracy"] == found["test/linear_accuracy"]
    assert found["evaluate/knn_accuracy"] == found["test/knn_accuracy"]


def test_other_classes_are_not_those_of_the_probe(probe, tmp_path, capsys):
    assert probe(trainer__max_epochs=1)[0] == 0
    other = colours(tmp_path / "other", names=["class0", "class1", "class3"])
    place = ["--run.dir", str(tmp_path / "runs"), "--data.root", str(other)]
    assert main(["--evaluate", "probe", *place]) == 2
    assert "label 2 is class2 there and class3 in the data set now" in capsys.readouterr().err


def test_cls_tokens_of_several_layers(probe):
    code, folder = probe(backbone__layers="last2", probe__features="cls", trainer__max_epochs=1)
    assert code == 0
    assert weights(folder)["classifier.1.weight"].shape == (3, 2 * 24)
    assert summary(folder)["features"] == "cls"


def test_cls_tokens_of_a_network_without(train, tmp_path, capsys):
    code, _ = train(
        "probe",
        task="linear_probe",
        data__name="image_folder",
        data__root=colours(tmp_path / "c"),
        backbone__name="resnet18",
        probe__features="cls",
    )
    assert code == 2
    assert "no CLS token. Use pooled" in capsys.readouterr().err


def naive_knn(queries, bank, labels, classes, k, temperature):
    scores = torch.zeros(len(queries), classes, dtype=torch.float64)
    for row, query in enumerate(queries):
        cosines = [float(query @ other / query.norm() / other.norm()) for other in bank]
        for index in sorted(range(len(bank)), key=lambda i: -cosines[i])[:k]:
            scores[row, labels[index]] += np.exp(cosines[index] / temperature)
    return scores / scores.sum(1, keepdim=True)


def test_knn_is_a_weighted_vote_of_the_nearest():
    torch.manual_seed(0)
    bank, queries = torch.randn(40, 6), torch.randn(9, 6)
    labels = torch.randint(0, 4, (40,))
    found = knn_scores(queries, bank, labels, 4, k=5)
    expected = naive_knn(queries, bank, labels, 4, 5, 0.07)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-6)
    truth = expected.argmax(1)
    assert knn_accuracy(queries, truth, bank, labels, 4, k=5) == 1.0
    assert knn_accuracy(queries, truth + 1, bank, labels, 5, k=5) == 0.0
    assert knn_scores(queries, bank[:3], labels[:3], 4, k=20).shape == (9, 4)


def test_a_low_temperature_leaves_the_nearest_alone_to_vote():
    """exp(1 / 0.001) is infinite in any precision."""
    torch.manual_seed(0)
    bank, labels = torch.randn(40, 6), torch.randint(0, 4, (40,))
    found = knn_scores(bank, bank, labels, 4, k=5, temperature=1e-3)
    torch.testing.assert_close(found, torch.nn.functional.one_hot(labels, 4).float())


def test_neighbours_are_told_apart_in_half_precision_runs_too():
    """Cosines near 1, as of a new ResNet, are ties in bfloat16."""
    torch.manual_seed(0)
    bank, queries = (10 + torch.randn(n, 32) for n in (200, 30))
    labels = torch.randint(0, 4, (200,))
    expected = knn_scores(queries, bank, labels, 4, k=5)
    with torch.autocast("cpu", torch.bfloat16):
        found = knn_scores(queries, bank, labels, 4, k=5)
        ties = torch.nn.functional.normalize(queries) @ torch.nn.functional.normalize(bank).T
    assert len(ties[0].unique()) < 20
    assert torch.equal(found, expected)


def error_of(capsys):
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


def test_an_unlabelled_folder(train, image_folder, tmp_path, capsys):
    code, folder = train(
        "probe", task="linear_probe", data__name="image_folder", data__root=image_folder
    )
    assert code == 2
    assert "lies in no folder of a class" in error_of(capsys)
    assert not folder.exists()
    elsewhere = {"probe__data__name": "image_folder", "probe__data__root": image_folder}
    code, _ = train("pre", callbacks__online_probe__enabled="true", **elsewhere)
    assert code == 2
    assert "lies in no folder of a class" in error_of(capsys)


def test_data_without_classes(train, capsys):
    assert train("probe", task="linear_probe", data__name="voc")[0] == 2
    assert (
        "--data.name voc: these images have no classes; probes work with shapes, cifar10"
        in error_of(capsys)
    )


@pytest.mark.parametrize(
    ("judged", "words"),
    [
        (["cat", "dog", "fox"], "(3 and 3). In the first only: emu; in the second: fox."),
        (["cat"], "(3 and 1). In the first only: dog, emu; in the second: none."),
    ],
)
def test_other_classes_in_the_test(train, tmp_path, capsys, judged, words):
    root = colours(tmp_path / "c", split=("train",), names=["cat", "dog", "emu"])
    colours(root, len(judged), split=("Valid",), names=judged)
    code, folder = train("probe", task="linear_probe", data__name="image_folder", data__root=root)
    assert code == 2
    said = f"{root / 'train'} and {root / 'Valid'} have different classes {words}"
    assert said in error_of(capsys)
    assert not folder.exists()


def test_corrupt_images_are_named_all_at_once(train, tmp_path, capsys):
    root = colours(tmp_path / "c")
    broken = [root / "val" / "class1" / "val03.png", root / "train" / "class0" / "train02.png"]
    for file in broken:
        assert file.is_file()
        file.write_bytes(b"no image")
    code, _ = train("probe", task="linear_probe", data__name="image_folder", data__root=root)
    assert code == 2
    said = error_of(capsys)
    assert "2 of 48 images cannot be read, and a probe needs every one: repair or remove" in said
    assert all(f"{file} (not a picture in a known format)" in said for file in broken)


def test_one_class_is_none_to_tell_apart(train, tmp_path, capsys):
    root = colours(tmp_path / "c", classes=1)
    code, _ = train("probe", task="linear_probe", data__name="image_folder", data__root=root)
    assert code == 2
    assert "are of one class, class0" in error_of(capsys)


def test_no_step_takes_the_time_of_computing_features(probe, monkeypatch):
    clock = SimpleNamespace(now=0.0)

    def slowly(rows):
        clock.now += 60
        return gather_rows(rows)

    monkeypatch.setattr("agents.linear_probe.gather_rows", slowly)
    timed = SimpleNamespace(perf_counter=lambda: clock.now)
    monkeypatch.setattr("callbacks.throughput.time", timed)
    monkeypatch.setattr("agents.trainer.Stopwatch", lambda: Stopwatch(lambda: clock.now))
    _, folder = probe(trainer__max_epochs=1)
    found = summary(folder)
    assert found["training_seconds"] == 0
    # Of training and held-out images, then of the test's: features and their places.
    assert (found["validation_seconds"], found["test_seconds"]) == (240, 120)


def test_without_held_out_images_the_words_say_so(probe, capsys):
    code, folder = probe(data__val_fraction=0, trainer__max_epochs=2)
    assert code == 0
    words = " ".join(summary(folder)["in_words"])
    assert "with the last checkpoint: there was no validation to choose one." in words
    assert "chose" not in words
    probe("chosen", trainer__max_epochs=2)
    assert "held-out images chose, " in " ".join(summary(folder.parent / "chosen")["in_words"])


def test_chance_is_the_most_frequent_class_where_classes_are_not_equal(probe, tmp_path):
    _, folder = probe(trainer__max_epochs=1)
    assert "Guessing would give 33.3%." in summary(folder)["in_words"]
    for file in sorted((tmp_path / "colours" / "val" / "class2").iterdir())[4:]:
        file.unlink()
    _, folder = probe("unequal", trainer__max_epochs=1)
    words = "Guessing would give 33.3%, the most frequent class for all images 40.0%."
    assert words in summary(folder)["in_words"]


def test_settings_a_probe_does_not_read(train, capsys):
    assert train("probe", task="linear_probe", backbone__freeze="true")[0] == 2
    assert "no effect on task linear_probe" in error_of(capsys)


def test_labels_of_both_forms_of_cifar10(tmp_path, monkeypatch):
    from tests.datamodules.test_cifar10_and_coco import TEST, TRAIN, npz, official

    y_train, y_test = np.arange(20, dtype=np.uint8) % 10, np.arange(8)
    plain = CIFAR10(str(npz(tmp_path)))
    with pytest.raises(ValueError, match="has no labels"):
        plain.labels("train")
    source = CIFAR10(str(npz(tmp_path, y_train=y_train, y_test=y_test)))
    classes, labels = source.labels("train")
    assert labels == y_train.tolist()
    assert classes[3] == "cat"
    assert source.labels("val")[1] == y_test.tolist()
    with pytest.raises(ValueError, match="one label for each of the 20 images"):
        CIFAR10(str(npz(tmp_path, y_train=y_test, y_test=y_test))).files("train")
    with pytest.raises(ValueError, match="not CIFAR-10's"):
        CIFAR10(str(npz(tmp_path, classes=np.array(["x"])))).files("train")
    source = CIFAR10(str(official(tmp_path, monkeypatch)))
    assert source.labels("train")[1] == [0] * len(TRAIN)
    assert source.labels("val")[1] == [0] * len(TEST)


ONLINE = {
    "callbacks__online_probe__enabled": "true",
    "callbacks__online_probe__every_n_epochs": 1,
    "callbacks__online_probe__num_images": 60,
    "trainer__max_epochs": 3,
}


def test_the_online_probe_leaves_no_trace_and_resumes(train, tmp_path, monkeypatch):
    root = colours(tmp_path / "c", each=20)
    shared = {"data__name": "image_folder", "data__root": root, **ONLINE}
    _, watched = train("with", **shared)
    off = dict.fromkeys([key for key in ONLINE if "online_probe" in key], ...)
    off["callbacks__online_probe__enabled"] = "false"
    _, alone = train("without", **shared | off)
    one, other = weights(watched), weights(alone)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    rows = read_metrics(watched / "metrics.csv")
    scores = {s: r for s, r in rows.items() if "val/knn_accuracy" in r}
    assert len(scores) == 4  # before the first step, and after every epoch
    assert scores[max(scores)]["val/knn_accuracy"] > 0.9

    _, half = train("half", **shared | {"trainer__max_epochs": 2, "optim__schedule": "constant"})
    words = ["--run.resume", "half", "--run.dir", str(half.parent), "--trainer.max_epochs", "3"]
    assert main(words) == 0
    _, whole = train("whole", **shared | {"optim__schedule": "constant"})
    again, expected = (read_metrics(f / "metrics.csv") for f in (half, whole))
    last = max(step for step in expected if "val/linear_accuracy" in expected[step])
    for name in ("val/linear_accuracy", "val/knn_accuracy"):
        assert again[last][name] == expected[last][name]
    state = torch.load(half / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    assert "weight" in state["OnlineProbe"]["linear"]


def test_a_second_labelled_data_set(train, tmp_path):
    root = colours(tmp_path / "c", each=20)
    _, folder = train("run", probe__data__name="image_folder", probe__data__root=root, **ONLINE)
    assert summary(folder)["val/knn_accuracy"] > 0.9


def test_a_second_data_set_that_is_not_there_is_named_by_its_own_settings(train, tmp_path, capsys):
    nowhere = tmp_path / "no where"
    shared = {"probe__data__name": "cifar10", "probe__data__root": nowhere, **ONLINE}
    assert train("run", **shared)[0] == 2
    said = capsys.readouterr().err
    assert f"No CIFAR-10 at --probe.data.root {nowhere}" in said
    (fetch,) = re.findall("A run with `(.*)` fetches it", said)
    command = parse(shlex.split(fetch))
    assert isinstance(command, Command)
    assert command.hparams.data.download
    assert (command.hparams.data.name, command.hparams.data.root) == ("cifar10", str(nowhere))
    assert train("run", **{**shared, "probe__data__name": "image_folder"})[0] == 2
    assert f"no folder {nowhere}. Set --probe.data.root." in capsys.readouterr().err
    other = tmp_path / "other"
    (other / "VOCdevkit").mkdir(parents=True)
    shared |= {"probe__data__name": "shapes", "probe__data__root": other}
    assert train("run", **shared)[0] == 2
    assert "set --probe.data.root to another folder" in capsys.readouterr().err


def test_an_online_probe_of_one_kind(train, tmp_path):
    root = colours(tmp_path / "c", each=20)
    shared = {"probe__data__name": "image_folder", "probe__data__root": root, **ONLINE}
    for kind, absent in (("knn", "linear"), ("linear", "knn")):
        _, folder = train(kind, probe__kind=kind, **shared)
        assert f"val/{kind}_accuracy" in summary(folder)
        assert f"val/{absent}_accuracy" not in summary(folder)


def test_without_labels_it_says_what_to_do(train, shapes_root, capsys):
    code, folder = train("run", **ONLINE, data__name="voc", data__root=shapes_root)
    assert code == 0
    assert "val/knn_accuracy" not in summary(folder)
    assert capsys.readouterr().err.count("set --probe.data.name") == 1


def test_images_of_one_class_are_no_readout(train, tmp_path, capsys):
    """Photographs in one folder: whatever the features are, all of them are told right."""
    root = colours(tmp_path / "photos", classes=1, each=40)
    code, folder = train("run", **ONLINE, data__name="image_folder", data__root=root)
    assert code == 0
    assert not [name for name in summary(folder) if "accuracy" in name]
    assert capsys.readouterr().err.count("no classes, or all the same. To follow") == 1


def test_embeddings_are_drawn_with_and_without_classes(train, tmp_path):
    for name, labelled in (("plain", {}), ("coloured", {"probe__data__name": "image_folder"})):
        if labelled:
            labelled["probe__data__root"] = colours(tmp_path / "c")
        code, folder = train(
            name,
            callbacks__embeddings__enabled="true",
            callbacks__embeddings__num_images=24,
            trainer__max_epochs=1,
            **labelled,
        )
        assert code == 0
        assert len(list(folder.glob("figures/embeddings/*.png"))) == 1


def test_one_held_out_image_is_no_picture_of_points_and_no_failure(train, tmp_path, capsys):
    root = colours(tmp_path / "train-only", classes=1, split=("train",))
    colours(root, classes=1, each=1, split=("val",))
    code, folder = train(
        data__name="image_folder", data__root=root, callbacks__embeddings__enabled="true"
    )
    assert code == 0
    assert not (folder / "figures" / "embeddings").exists()
    assert capsys.readouterr().err.count("embeddings: 1 val image, too few for a picture") == 1


def test_principal_components_against_the_covariance():
    from callbacks.embeddings import principal_components

    torch.manual_seed(0)
    features = torch.randn(50, 6, dtype=torch.float64) * torch.tensor([9, 4, 1, 1, 1, 0.5])
    points, shares = principal_components(features)
    values = torch.linalg.eigvalsh(torch.cov(features.T, correction=0)).flip(0)
    np.testing.assert_allclose(points.var(0), values[:2].numpy())
    np.testing.assert_allclose(shares, (values[:2] / values.sum()).numpy())


def test_tsne_keeps_neighbours_together():
    pytest.importorskip("sklearn")
    from callbacks.embeddings import tsne

    torch.manual_seed(0)
    features = torch.randn(60, 8, dtype=torch.float64) + 30 * (torch.arange(60) % 3)[:, None]
    points = tsne(features)
    assert points.shape == (60, 2)
    groups = [points[index::3] for index in range(3)]
    spread = max(np.linalg.norm(g - g.mean(0), axis=1).max() for g in groups)
    centres = [g.mean(0) for g in groups]
    assert min(np.linalg.norm(a - b) for a, b in pairwise(centres)) > spread


def test_small_images_are_enlarged_and_that_is_said(train, tmp_path):
    root = colours(tmp_path / "c")  # 32 px
    with pytest.warns(UserWarning, match=r"32 to 32 px .* fewer than --data.image_size 48"):
        code, _ = train(
            "run",
            data__name="image_folder",
            data__root=root,
            data__image_size=48,
            trainer__max_epochs=1,
        )
    assert code == 0


def test_hparams_name_the_second_data_set():
    assert Hparams().probe.data.name is None


def test_weights_of_a_run_bring_its_architecture(train, tmp_path):
    _, source = train("source", backbone__depth=3, backbone__pool="mean", trainer__max_epochs=1)
    sizes = dict.fromkeys(("backbone__patch_size", "backbone__depth", "backbone__embed_dim"), ...)
    code, folder = train(
        "probe",
        task="linear_probe",
        data__name="image_folder",
        data__root=colours(tmp_path / "c"),
        backbone__weights="run:source",
        trainer__max_epochs=1,
        **sizes,
    )
    assert code == 0
    one, other = (yaml.safe_load((f / "hparams.yaml").read_text()) for f in (source, folder))
    for leaf in ("name", "patch_size", "depth", "embed_dim", "pool"):
        assert one["backbone"][leaf] == other["backbone"][leaf]
    code, _ = train("other", backbone__weights="run:source", **sizes | {"backbone__depth": 2})
    assert code == 2  # what is given wins, and does not fit


def test_images_of_a_try_out_are_spread_over_the_set(tmp_path):
    source = ImageFolder(str(colours(tmp_path, classes=2)))  # 16 in each split
    for most, count in ((None, 16), (50, 16), (5, 5), (2, 2)):
        data = LabelledDataModule(source, 32, Loading(2), 0.0, most)
        data.list_images("fit")
        for split in ("train", "test"):
            assert len(data.splits[split]) == count
            assert set(data.splits[split].labels) == {0, 1}


def test_the_words_name_as_many_neighbours_as_there_are(train, capsys):
    settings = {"task": "linear_probe", "probe__kind": "knn", "backbone__patch_size": 8}
    code, _ = train("run", **settings, probe__k=1000, trainer__max_epochs=...)
    assert code == 0
    assert "k-NN (k = 24, T = 0.07)" in capsys.readouterr().out
