"""An exported network works elsewhere, with the lines that are printed or in its card."""

import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from agents.commands.export import export
from agents.commands.model_card import licence
from agents.commands.portable import check_installed, make_portable
from agents.commands.trained import trained_agent
from config.names import BACKBONES, FUSIONS, HEADS, TIMM, split
from config.parsing import parse
from datamodules.base import square_of
from datamodules.transforms.segmentation import Standard
from main import main
from models.exported import ExportedBackbone, ExportedSegmenter
from models.fusions.attention_fusion import AttentionFusion, attention_heads, attention_request
from models.heads.linear import Linear
from models.segmenter import Segmenter
from tests.conftest import summary
from utils.imports import load
from utils.run_checkpoints import best_or_last
from utils.run_folder import RunFolder

SMALL = {
    "vit_tiny": {"patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2},
    "vit_small": {"patch_size": 16, "depth": 1},
    "vit_base": {"depth": 1, "mlp_ratio": 2.0},
    "vit_pytorch": {"depth": 1, "embed_dim": 24, "num_heads": 3},
}


NAMES = [*(name for name in BACKBONES if name != TIMM), "timm/test_vit3", "timm/test_convnext"]


@pytest.mark.parametrize("name", NAMES)
def test_the_printed_lines_load_it(name, tmp_path):
    torch.manual_seed(0)
    row, member = split(name)
    backbone = load(BACKBONES[row])(*member, image_size=64, **SMALL.get(name, {})).eval()
    # Running statistics that are not those of a new network.
    for buffer_name, buffer in backbone.net.named_buffers():
        if buffer_name.endswith("running_mean"):
            buffer.normal_()
    folder = RunFolder(tmp_path / "run")
    folder.checkpoints.mkdir(parents=True)
    printed = export(SimpleNamespace(backbone=backbone), folder)
    lines = [line.strip() for line in printed if line.startswith("    ")]
    scope: dict = {}
    exec("\n".join(lines), scope)
    with safe_open(folder.exported, "pt") as file:
        assert file.metadata()["load"].splitlines() == lines
        assert set(file.keys()) == set(backbone.net.state_dict())
    if name == "botnet50":
        assert "no BoTNet" in lines[0]
        assert scope["state"].keys() == backbone.net.state_dict().keys()
        return
    # Two lines beside the imports.
    assert sum(not line.startswith(("import", "from")) for line in lines) == 2
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(images).pooled
        found = scope["model"].eval()(backbone.normalise(images))
    if found.ndim == 3:  # without a classifier vit-pytorch's gives all tokens
        found = found[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_another_stem_has_no_plain_network():
    assert load(BACKBONES["resnet18"])(image_size=32, stem="cifar").plain is None


def test_an_unfinished_run_is_not_exported(train, capsys):
    _, folder = train("run", trainer__max_epochs=1)
    for state in ({"status": "interrupted"}, {"status": "failed"}):
        RunFolder(folder).write_summary(state)
        assert main(["--export", "run", "--run.dir", str(folder.parent)]) == 2
        said = capsys.readouterr().err
        assert f"the run is {state['status']}" in said
        assert f"--run.resume {folder}" in said
    (folder / "summary.json").unlink()
    assert main(["--export", "run", "--run.dir", str(folder.parent)]) == 2
    assert "the run is not finished" in capsys.readouterr().err
    assert main(["--export", "run", "--format", "tflite", "--run.dir", str(folder.parent)]) == 2
    assert "invalid choice: 'tflite'" in capsys.readouterr().err


# --- onnx and pt2 -------------------------------------------------------------------------------


def run_file(file, images):
    if file.suffix == ".pt2":
        return [each.numpy() for each in torch.export.load(file).module()(images)]
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images.numpy()})


def python_of(card):
    (code,) = re.findall(r"^```python\n(.*?)^```$", card.read_text(), re.M | re.S)
    return code


def runs_as_the_card_says(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    Image.effect_noise((70, 53), 90).convert("RGB").save("photo.jpg")
    scope: dict = {}
    exec(python_of(file.with_name("README.md")), scope)
    return scope


@pytest.mark.parametrize("form", ["onnx", pytest.param("pt2", marks=pytest.mark.slow)])
def test_a_segmenter_is_a_program_of_its_own(train, monkeypatch, capsys, form):
    _, folder = train("run", task="segmentation", trainer__max_steps=1, trainer__accumulate=2)
    runs = ["--run.dir", str(folder.parent)]
    assert main(["--export", "run", "--format", form, *runs]) == 0
    said = capsys.readouterr().out
    file = folder / "exported" / form / f"segmenter.{form}"
    assert str(file) in said
    assert "of any size; gives logits (B, 9, H, W)" in said
    agent, *_ = trained(folder)
    for shape in ((1, 3, 32, 32), (2, 3, 61, 33), (3, 3, 48, 80)):  # neither traced nor checked
        images = torch.randint(0, 256, shape, dtype=torch.uint8)
        (logits,) = run_file(file, images)
        with torch.no_grad():
            expected = agent.network(images)
        np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
    scope = runs_as_the_card_says(file, monkeypatch)
    assert scope["labels"].shape == (1, 32, 42)
    with Image.open("photo.jpg") as photo:  # what was judged, and no other resampling
        assert np.array_equal(scope["images"][0], Standard(32).image(photo))
    card = file.with_name("README.md").read_text()
    miou = summary(folder)["test/miou"]
    for words in (
        "voc12_standard",
        f"| test/miou | {miou:.4g} |",
        "`shapes`",
        "at random",
        "1 step of 2 x 8 images",
    ):
        assert words in card


def trained(folder):
    hparams = parse(["--evaluate", folder.name, "--run.dir", str(folder.parent)]).hparams
    run = RunFolder(folder)
    return trained_agent(run, hparams, best_or_last(run))


@pytest.mark.slow
def test_a_pretrained_backbone_is_a_program_of_its_own(train, monkeypatch):
    _, folder = train("run", trainer__max_steps=1)
    for form in ("safetensors", "pt2"):
        assert main(["--export", "run", "--format", form, "--run.dir", str(folder.parent)]) == 0
    agent, *_ = trained(folder)
    file = folder / "exported" / "pt2" / "backbone.pt2"
    images = torch.randint(0, 256, (3, 3, 64, 48), dtype=torch.uint8)
    pooled, maps = run_file(file, images)
    expected = agent.backbone(images)
    np.testing.assert_allclose(pooled, expected.pooled.detach().numpy(), atol=1e-4)
    np.testing.assert_allclose(maps, expected.maps[0].detach().numpy(), atol=1e-4)
    scope = runs_as_the_card_says(file, monkeypatch)
    assert scope["pooled"].shape == (1, 24)
    assert np.array_equal(scope["images"][0], square_of(Path("photo.jpg"), 32))
    model = runs_as_the_card_says(RunFolder(folder).exported, monkeypatch)["model"]
    assert model.num_features == 24


PARTS = [
    *((name, "linear", form) for name in NAMES for form in ("onnx", "pt2")),
    *(("vit_tiny", head, form) for head in HEADS for form in ("onnx", "pt2")),
    *(("vit_tiny", fusion, form) for fusion in FUSIONS for form in ("onnx", "pt2")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "part", "form"), PARTS)
def test_every_network_is_a_program_of_its_own(name, part, form):
    made = make_portable(segmenter(name, part), form, 64, {})
    assert made.difference < 1e-4
    assert made.side == (64 if name.startswith("swin") else None)


def segmenter(name, part):
    torch.manual_seed(0)
    row, member = split(name)
    small = SMALL.get(name, {})
    layers = {"layers": "last4"} if part == "setr_mla" else {}
    if layers:
        small = {**small, "depth": 4}
    backbone = load(BACKBONES[row])(*member, image_size=64, **small, **layers)
    channels, strides = backbone.map_channels, backbone.map_strides
    if part in FUSIONS:
        request = attention_request(backbone, [-1], all_pairs=True)
        heads = attention_heads(backbone, request)
        fused = load(FUSIONS[part])(channels, strides, 5, heads)
        around = AttentionFusion({part: fused}, request)
        channels, part = fused.channels, "linear"
    else:
        around = AttentionFusion()
    head = load(HEADS[part])(channels, strides, 5)
    if part == "knn":
        head.memory.fill(torch.randn(50, head.in_channels), torch.rand(50, 5).softmax(1))
    return ExportedSegmenter(Segmenter(backbone, head, around), tuple("abcde"))


class Bessel(Linear):
    """A head with an operation that ONNX has not."""

    def decode(self, x):
        return torch.special.bessel_j0(super().decode(x))


def test_what_a_format_has_not_is_said_in_one_sentence():
    backbone = load(BACKBONES["vit_tiny"])(image_size=32, **SMALL["vit_tiny"])
    backbone.fixed_side = 32  # one attempt will do
    head = Bessel(backbone.map_channels, backbone.map_strides, 3)
    network = ExportedSegmenter(Segmenter(backbone, head, AttentionFusion()), tuple("abc"))
    with pytest.raises(ValueError, match=r"--format onnx: this segmenter .*bessel_j0") as caught:
        make_portable(network, "onnx", 32, {})
    assert "\n" not in str(caught.value)


def test_a_network_of_one_size_says_so():
    backbone = load(BACKBONES["vit_tiny"])(image_size=32, **SMALL["vit_tiny"])
    backbone.fixed_side = 32
    made = make_portable(ExportedBackbone(backbone), "pt2", 32, {})
    assert made.side == 32
    program = torch.export.load(io.BytesIO(made.content)).module()
    assert program(torch.zeros(5, 3, 32, 32, dtype=torch.uint8))[0].shape == (5, 24)


def test_a_format_goes_with_an_export(capsys):
    assert main(["--format", "onnx"]) == 2
    assert "--format goes with --export RUN" in capsys.readouterr().err


def test_packages_that_are_missing_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"needs onnxruntime: \S+pip install onnx onnxscript"):
        check_installed("onnx")


def test_the_licence_is_that_of_the_first_weights(train):
    _, first = train("first", trainer__max_steps=1)
    hparams = parse([]).hparams
    hparams.run.dir = str(first.parent)
    for weights, words in (
        ("none", "at random"),
        ("run:first", "with those of the run first, which began at random"),
        ("dino", "Apache 2.0"),
        ("/somewhere/w.pth", "those of the file w.pth"),
        ("run:gone", "unknown weights"),
    ):
        hparams.backbone.weights = weights
        assert words in licence(hparams)
