"""Segmentation by nearest patches: a run that is its test, kept whole in its checkpoint."""

import numpy as np
import pytest
import torch
from PIL import Image

from agents.patch_memory import as_seen, memory_in_words, remember
from config.announcement import length
from config.hparams import Hparams
from config.length import resolve_for_data
from config.resolve import resolve
from datamodules.loading import Loading
from datamodules.segmentation import SegmentationDataModule
from datamodules.shapes import Shapes
from datamodules.transforms.segmentation import Standard
from main import main
from models.backbones.resnet import resnet18
from models.backbones.vit import vit_tiny
from models.fusions.attention_fusion import AttentionFusion
from models.heads.base import concatenated, resize
from models.heads.knn import KNN
from models.measures.dense_knn import PatchMemory, labelled_patches
from models.segmenter import Segmenter, pad_to_multiple
from tests.conftest import summary, weights
from utils.stopwatch import Stopwatch

VOID = 255
KNN_RUN = {
    "task": "segmentation",
    "segmentation__head": "knn",
    "backbone__freeze": "true",
    "data__val_fraction": 0.3,
    "trainer__max_epochs": ...,
}


def data(root, val_fraction=0.3):
    module = SegmentationDataModule(
        Shapes(str(root)), Standard(40), 32, Loading(batch_size=4), val_fraction
    )
    module.setup("fit")
    return module


def test_what_it_remembers_and_validates_takes_is_counted(train, monkeypatch):
    clock = [0.0]

    def slowly(*arguments):
        clock[0] += 60.0
        remember(*arguments)

    monkeypatch.setattr("agents.segmentation.remember", slowly)
    monkeypatch.setattr("agents.trainer.Stopwatch", lambda: Stopwatch(lambda: clock[0]))
    _, folder = train(**KNN_RUN)
    assert summary(folder)["validation_seconds"] == 60.0


def test_labels_are_padded_as_their_images_are():
    labels = torch.arange(20, dtype=torch.uint8).view(4, 5)
    found = as_seen(labels, (8, 10), 16)
    assert found.shape == (16, 16)
    assert torch.equal(found[:8, :10], labels.repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert (found[8:] == VOID).all()
    assert (found[:, 10:] == VOID).all()
    assert as_seen(labels, (4, 5), 1).equal(labels)
    # Of every 3 x 3 labels the one in the middle.
    assert as_seen(torch.arange(54).byte().view(6, 9), (2, 3), 1).tolist() == [
        [10, 13, 16],
        [37, 40, 43],
    ]


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_the_memory_is_that_of_one_image_at_a_time(shapes_root, kind):
    torch.manual_seed(0)
    backbone = (
        vit_tiny(image_size=32, patch_size=16, depth=2, embed_dim=24, layers="last2")
        if kind == "vit"
        else resnet18(image_size=32, layers="last4")
    )
    backbone.freeze()
    head = KNN(backbone.map_channels, backbone.map_strides, 9, k=3)
    network = Segmenter(backbone, head, AttentionFusion()).eval()
    module = data(shapes_root)
    remember(network, head.memory, module.whole_training_images())
    parts = []
    pairs = [p for p in module.pairs("train") if p[0] in set(module.train_files)]
    assert len(pairs) < 24
    for file, mask in pairs:
        with Image.open(file) as opened, Image.open(mask) as stored:
            image = module.protocol.image(opened.convert("RGB"))
            labels = torch.from_numpy(np.array(stored))
        with torch.no_grad():
            maps = concatenated(backbone(pad_to_multiple(image[None], network.multiple)).maps)
        seen = as_seen(labels, tuple(image.shape[1:]), network.multiple)
        parts.append(labelled_patches(maps[0], seen, 9))
    expected = PatchMemory(head.in_channels, 9)
    expected.fill(*(torch.cat(each) for each in zip(*parts, strict=True)))
    torch.testing.assert_close(head.memory.shares, expected.shares)
    torch.testing.assert_close(head.memory.features, expected.features, rtol=0, atol=1e-5)


def test_a_run_is_its_test_and_can_be_used_again(train, capsys, shapes_root):
    code, folder = train("knn", **KNN_RUN)
    said = capsys.readouterr().out
    assert code == 0
    found = summary(folder)
    assert found["status"] == "finished"
    assert found["steps"] == 0
    assert 0 < found["test/miou"] < 1
    assert 0 < found["val/miou"] < 1
    assert not [name for name in found if name.endswith("/loss")]
    assert "Nothing was trained: classes are those of the 30 nearest" in " ".join(said.split())
    assert (folder / "test_counts.npz").exists()
    remembered = weights(folder)["head.memory.features"]
    torch.testing.assert_close(remembered.norm(dim=1), torch.ones(len(remembered)))
    place = ["--run.dir", str(folder.parent)]
    assert main(["--evaluate", "knn", *place]) == 0
    again = summary(folder)["evaluate/voc12_standard/miou"]
    assert again == pytest.approx(found["test/miou"], abs=1e-7)
    image = next((shapes_root / "VOCdevkit" / "VOC2012" / "JPEGImages").glob("*.jpg"))
    assert main(["--predict", "knn", "--images", str(image), *place]) == 0
    assert list((folder / "predictions").rglob("*.png"))
    assert main(["--run.resume", "knn", *place]) == 0
    assert summary(folder)["test/miou"] == pytest.approx(found["test/miou"], abs=1e-7)


def test_logits_are_upsampled_shares():
    torch.manual_seed(0)
    backbone = vit_tiny(image_size=32, patch_size=16, depth=1, embed_dim=24)
    backbone.freeze()
    head = KNN(backbone.map_channels, backbone.map_strides, 3, k=2)
    network = Segmenter(backbone, head, AttentionFusion()).eval()
    head.memory.fill(torch.randn(8, 24), torch.eye(3)[torch.arange(8) % 3])
    image = torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8)
    with torch.no_grad():
        (found,) = network.logits_at([image], [(64, 96)])
        shares = head.memory.label_maps(backbone(image[None]).maps[0])
    torch.testing.assert_close(found, resize(resize(shares, (32, 48)), (64, 96))[0])
    torch.testing.assert_close(found.sum(0), torch.ones(64, 96))


def test_settings_of_the_memory_reach_it(train):
    code, folder = train(
        "one", **KNN_RUN, segmentation__knn__k=1, callbacks__image_counts__enabled="false"
    )
    assert code == 0
    code, other = train("soft", **KNN_RUN, segmentation__knn__temperature=5.0)
    assert code == 0
    assert summary(folder)["test/miou"] != summary(other)["test/miou"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"backbone__freeze": "false"}, "it needs --backbone.freeze true"),
        ({"backbone__unfreeze_last": 1}, "without --backbone.unfreeze_last"),
        ({"segmentation__knn__k": 0}, "expected at least 1"),
        ({"segmentation__test_flip": "true"}, "no effect with --segmentation.head knn"),
        ({"trainer__max_epochs": 3}, "max_epochs 3 has no effect with --segmentation.head knn"),
    ],
)
def test_what_it_cannot_do_is_refused_in_words(train, capsys, changed, message):
    code, folder = train("bad", **{**KNN_RUN, **changed})
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not folder.exists()


def test_masks_of_nothing_but_void(train, capsys, monkeypatch):
    monkeypatch.setattr(
        "datamodules.masks.reading.read_labels",
        lambda file, *_: torch.full(np.array(Image.open(file)).shape, VOID, dtype=torch.uint8),
    )
    code, _ = train("void", **KNN_RUN)
    assert code != 0
    assert "void all over" in " ".join(capsys.readouterr().err.split())


def test_no_length_is_announced_where_nothing_is_trained():
    hparams = Hparams(task="segmentation")
    hparams.segmentation.head, hparams.backbone.freeze = "knn", True
    said, warnings = length(resolve_for_data(resolve(hparams), 24, False), 24)
    assert said.endswith("on shapes: 24 training images; nothing is trained.")
    assert not warnings


def test_a_run_without_any_curve_has_its_report(train):
    whole = {**KNN_RUN, "data__val_fraction": 0.0, "callbacks__report__enabled": "true"}
    code, folder = train("whole", **whole)
    assert code == 0
    assert "val/miou" not in summary(folder)
    assert (folder / "report.html").exists()


def test_the_words_name_as_many_neighbours_as_there_are():
    memory = PatchMemory(4, 2, k=30)
    memory.fill(torch.randn(7, 4), torch.rand(7, 2))
    assert "those of the 7 nearest of 7 patches" in memory_in_words(memory, None)
