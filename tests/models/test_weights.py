"""Weights of every layout load completely or fail loudly."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from models.backbones.base import Backbone
from models.backbones.positions import fitted_positions
from models.backbones.resnet import resnet18
from models.backbones.vit import vit_tiny
from models.backbones.vit_pytorch import vit_pytorch
from models.backbones.weights import LoadReport, load_state, load_weights
from models.state_dicts import Network
from tests.models.other_libraries import transformers_vit
from utils.weight_files import read_checkpoint, tensors_in

STAND_IN = (
    Path(__file__).parents[3]
    / "shared" / "data" / "weights" / "vit_small_patch16_dino_layout_fp16.pth"
)  # fmt: skip


def vit(seed: int, **settings: Any) -> Backbone:
    torch.manual_seed(seed)
    size = {"image_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3}
    return vit_tiny(**size | settings)


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


LAYOUTS = {
    "plain": lambda state: state,
    "half precision": lambda state: {k: v.half() for k, v in state.items()},
    "official DINO, full": lambda state: {
        "student": prefixed({k: v + 1 for k, v in state.items()}, "module.backbone."),
        "teacher": prefixed(state, "backbone.") | {"head.mlp.0.weight": torch.zeros(3, 3)},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_tiny", lr=0.1),
    },
    "official Barlow Twins, full": lambda state: {
        "epoch": 1,
        "model": prefixed(state, "module.backbone.") | {"module.projector.0.weight": torch.ones(2)},
    },
    "our own run": lambda state: {
        "state_dict": prefixed(state, "backbone.net.") | {"projector.0.weight": torch.ones(2)},
        "hyper_parameters": {"task": "barlow_twins"},
    },
    "a list of weights and optimizer": lambda state: [state, {"lr": 0.1}],
    "timm with its head": lambda state: state | {"head.weight": torch.zeros(10, 24)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads_completely(layout, tmp_path):
    source, target = vit(1), vit(2)
    file = tmp_path / "weights.pth"
    torch.save(LAYOUTS[layout](dict(source.net.state_dict())), file)
    report = load_weights(target, str(file))
    assert report is not None
    assert report.coverage == 1
    assert not report.missing
    tolerance = 1e-2 if layout == "half precision" else 0
    for key, value in source.net.state_dict().items():
        torch.testing.assert_close(target.net.state_dict()[key], value, rtol=0, atol=tolerance)


def test_positions_and_patches_of_another_size_are_resized_and_said_so():
    report = load_state(vit(2), vit(1, image_size=64, patch_size=16).net.state_dict(), "file")
    assert report.resized == ("patch_embed.proj.weight",)
    report = load_state(vit(2), vit(1, image_size=64).net.state_dict(), "file")
    assert report.resized == ("pos_embed",)
    assert "resized" in str(report)


def test_vit_pytorch_positions_are_resized():
    size = {"patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3}
    source, target = vit_pytorch(image_size=64, **size), vit_pytorch(image_size=32, **size)
    assert load_state(target, source.net.state_dict(), "file").resized == ("pos_embedding",)


@pytest.mark.parametrize(
    "make",
    [
        lambda: vit(1, depth=3),  # a longer network than ours: half of it would be lost
        lambda: vit(1, depth=1),
        lambda: vit(1, embed_dim=48),
        lambda: resnet18(image_size=32),
    ],
)
def test_another_architecture_is_an_error(make):
    before = {key: value.clone() for key, value in vit(2).net.state_dict().items()}
    target = vit(2)
    with pytest.raises(ValueError, match="another architecture"):
        load_state(target, make().net.state_dict(), "file")
    for key, value in target.net.state_dict().items():
        assert torch.equal(value, before[key])  # nothing was half-loaded


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("was-run"),)


def test_a_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Malicious()}, "bad.pth")
    with pytest.raises(ValueError, match="refused"):
        read_checkpoint(Path("bad.pth"))
    assert not Path("was-run").exists()


def test_other_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weight file .*nowhere\.pth.* run:NAME"):
        load_weights(vit(1), str(tmp_path / "nowhere.pth"))
    (tmp_path / "first-run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "first-run" / "checkpoints" / "backbone.pth").touch()
    with pytest.raises(FileNotFoundError, match=r"no run frist-run .*Did you mean first-run"):
        load_weights(vit(1), "run:frist-run", str(tmp_path))
    with pytest.raises(ValueError, match="run: needs the name of a run"):
        load_weights(vit(1), "run:", str(tmp_path))
    file = tmp_path / "text.pth"
    file.write_text("not weights")
    with pytest.raises(ValueError, match=r"text\.pth"):
        load_weights(vit(1), str(file))
    torch.save({"lr": 0.1}, file)
    with pytest.raises(ValueError, match="holds no weights"):
        tensors_in(read_checkpoint(file), "text.pth")
    with pytest.raises(ValueError, match="published for it: pretrained"):
        load_weights(vit(1), "barlow_twins")


def test_official_weights_are_downloaded_or_the_file_is_named(monkeypatch, tmp_path):
    import torch.hub

    from models.backbones.resnet import resnet50
    from models.backbones.vit import vit_small

    asked = []

    def unplugged(url: str, *_: object) -> None:
        asked.append(url)
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unplugged)
    with torch.device("meta"):
        wanted = [
            (vit_small(image_size=32, patch_size=8), "dino", "dino_deitsmall8_pretrain.pth"),
            (vit_small(image_size=32), "dino", "dino_deitsmall16_pretrain.pth"),
            (resnet50(image_size=32), "dino", "dino_resnet50_pretrain.pth"),
            (resnet50(image_size=32), "barlow_twins", "resnet50.pth"),
        ]
    for backbone, source, file in wanted:
        with pytest.raises(ValueError, match=r"by hand .* --backbone.weights FILE"):
            load_weights(backbone, source)
        assert asked[-1].endswith(file)


def test_safetensors_too(tmp_path):
    from safetensors.torch import save_file

    source = vit(1)
    save_file(dict(source.net.state_dict()), tmp_path / "net.safetensors")
    report = load_weights(vit(2), str(tmp_path / "net.safetensors"))
    assert report is not None
    assert report.coverage == 1


@pytest.mark.skipif(not STAND_IN.exists(), reason="the stand-in weights are not on this machine")
def test_a_real_file_in_the_layout_of_official_dino():
    from models.backbones.vit import vit_small

    report = load_weights(vit_small(image_size=96), str(STAND_IN))
    assert report is not None
    assert (report.coverage, report.missing, report.unexpected) == (1, (), ())
    assert report.resized == ("pos_embed",)


def test_weights_that_are_no_numbers_are_refused():
    state = dict(vit(1).net.state_dict())
    for broken in (float("nan"), float("inf")):
        bad = state | {"norm.bias": torch.full((24,), broken)}
        with pytest.raises(ValueError, match=r"1 of 30 .* in places \(first norm\.bias\)"):
            load_state(vit(2), bad, "file")
    quantised = state | {"norm.bias": torch.zeros(24, dtype=torch.int8)}
    with pytest.raises(ValueError, match=r"norm\.bias is torch\.int8"):
        load_state(vit(2), quantised, "file")


def test_every_single_tensor_of_the_network_is_needed():
    state = dict(vit(1).net.state_dict())
    for key in state:
        with pytest.raises(ValueError, match="is not loaded"):
            load_state(vit(2), {k: v for k, v in state.items() if k != key}, "file")


def test_a_tensor_that_nobody_knows_is_refused():
    state = dict(vit(1).net.state_dict())
    for key in ("blocks.0.gate.weight", "patch_embed.norm.weight", "adapter"):
        with pytest.raises(ValueError, match=key):
            load_state(vit(2), state | {key: torch.ones(24)}, "file")


def test_the_network_that_was_taken_is_said():
    mine, another = vit(1).net.state_dict(), vit(3).net.state_dict()
    file = prefixed(another, "student.") | prefixed(mine, "teacher.")
    assert "taken: teacher.*, rather than student.*" in str(load_state(vit(2), file, "file"))
    equal = prefixed(mine, "a.") | prefixed(mine, "b.")
    assert load_state(vit(2), equal, "file").coverage == 1
    with pytest.raises(ValueError, match=r"several networks .* a\.\*, b\.\*"):
        load_state(vit(2), prefixed(mine, "a.") | prefixed(another, "b."), "file")


def test_blocks_in_chunks_are_those_of_the_plain_layout_or_refused():
    plain, chunked, anew = {}, {}, {}
    for key, value in vit(1, depth=4).net.state_dict().items():
        first, block, rest = key.split(".", 2) if key.startswith("blocks.") else ("", "0", key)
        chunk, place = divmod(int(block), 2)
        plain[key] = value
        chunked[f"blocks.{chunk}.{block}.{rest}" if first else key] = value
        anew[f"blocks.{chunk}.{place}.{rest}" if first else key] = value
    images = torch.rand(2, 3, 32, 32)
    features = []
    for state in (plain, chunked):
        target = vit(2, depth=4).eval()
        assert load_state(target, state, "file").coverage == 1
        features.append(target(images).pooled)
    assert torch.equal(*features)
    # Numbered anew in every chunk: not DINOv2's, and blocks of two chunks have one number.
    with pytest.raises(ValueError, match="is not loaded"):
        load_state(vit(2, depth=2), anew, "file")


def test_a_network_in_the_names_of_two_libraries_is_not_one_of_them():
    ours, theirs = (dict(vit(seed).net.state_dict()) for seed in (1, 2))
    file = prefixed(ours, "vit.") | transformers_vit(theirs)
    with pytest.raises(ValueError, match="is not loaded"):
        load_state(vit(3), file, "file")


@pytest.mark.parametrize("lost", ["pos_embed", "blocks.0.attn.qkv.weight", "norm.bias"])
def test_a_teacher_that_has_lost_a_tensor_is_refused_rather_than_its_student_taken(lost):
    mine, another = (dict(vit(seed).net.state_dict()) for seed in (1, 2))
    del mine[lost]
    file = prefixed(another, "student.") | prefixed(mine, "teacher.")
    with pytest.raises(ValueError, match=lost.split(".")[-1]):
        load_state(vit(3), file, "file")


def test_registers_are_positions_and_tokens_of_their_own():
    report = load_state(vit(2, registers=2), vit(1, registers=2).net.state_dict(), "file")
    assert (report.coverage, report.resized) == (1, ())
    with pytest.raises(ValueError, match="It lacks: register tokens"):
        load_state(vit(2, registers=2), vit(1).net.state_dict(), "file")


def test_pretrained_vits_see_images_as_they_were_trained_to(monkeypatch):
    """timm's own are trained on images with 0.5 taken out, not ImageNet's mean."""
    from models.backbones import vit_published

    net = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    assert net.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    monkeypatch.setattr(vit_published, "pretrained", lambda model: net.state_dict())
    backbone = vit_tiny(image_size=224, pool="cls").eval()
    assert load_weights(backbone, "pretrained").coverage == 1
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        expected = net.eval()((images - 0.5) / 0.5)
        found = backbone(images).pooled
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_folder_of_a_run_is_no_file_but_may_be_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"the weights of a run are run:{tmp_path}"):
        load_weights(vit(1), str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(vit(2).net.state_dict(), tmp_path / "checkpoints" / "backbone.pth")
    report = load_weights(vit(1), f"run:{tmp_path}")
    assert report is not None
    assert report.coverage == 1


def test_a_folder_with_weights_and_an_address_are_answered_with_what_to_give(tmp_path):
    (tmp_path / "config.json").touch()
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FileNotFoundError, match=rf"did you mean {tmp_path}/model\.safetensors"):
        load_weights(vit(1), str(tmp_path))
    with pytest.raises(FileNotFoundError, match="an address: download the file"):
        load_weights(vit(1), "https://example.org/net.pth")


def test_tensors_of_other_kinds_are_refused():
    class Shard(torch.Tensor):
        """As a DTensor: other operators do not take it."""

    state = vit(1).net.state_dict()
    with pytest.raises(ValueError, match=r"norm\.bias is a Shard"):
        tensors_in(state | {"norm.bias": state["norm.bias"].as_subclass(Shard)}, "file")


def test_tensors_that_hold_nothing_are_refused():
    state = vit(1).net.state_dict()
    for key in ("patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight"):
        empty = {**state, key: state[key][..., :0]}
        with pytest.raises(ValueError, match=rf"{key} is \(.*0\), which holds nothing"):
            load_state(vit(2), empty, "file")


@pytest.mark.parametrize("make", [lambda: vit(1), lambda: resnet18(image_size=32, stem="imagenet")])
@pytest.mark.parametrize(("channels", "said"), [(1, "1 channel,"), (4, "4 channels,")])
def test_images_of_other_channels_are_said(make, channels, said):
    backbone = make()
    state = backbone.net.state_dict()
    key = next(key for key, value in state.items() if value.ndim == 4)
    images = state[key][:, :1].expand(-1, channels, -1, -1)
    with pytest.raises(ValueError, match=f"reads images of {said} and images here have 3"):
        load_state(backbone, {**state, key: images}, "file")


@pytest.mark.parametrize("place", ["ema.shadow_params", "shadow_params", "model_ema"])
def test_averages_without_names_are_said(place):
    state = vit(1).net.state_dict()
    averages = {f"{place}.{n}": value for n, value in enumerate(state.values())}
    report = load_state(vit(2), {**prefixed(state, "model."), **averages}, "file")
    assert f"not taken: {place}, averaged weights in a list without names" in str(report)
    named = load_state(vit(2), {**state, **prefixed(state, "ema.")}, "file")
    assert "not taken" not in str(named)


def test_a_run_without_its_backbone_is_finished_and_not_trained_anew(tmp_path):
    run = tmp_path / "mine"
    run.mkdir()
    (run / "hparams.yaml").write_text("task: dino\n")
    with pytest.raises(FileNotFoundError, match=r"--run\.resume mine finishes it"):
        load_weights(vit(1), "run:mine", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"--run.resume {run} finishes it"):
        load_weights(vit(1), f"run:{run}", str(tmp_path / "elsewhere"))


@pytest.mark.parametrize(("coverage", "percent"), [(1.0, 100), (0.999, 99), (0.5, 50)])
def test_all_is_only_said_of_all(coverage, percent):
    report = LoadReport("file", Network("", {}), ("a",), (), (), (), (), (), coverage)
    assert f"({percent}% of the parameters" in str(report)


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_positions_of_all_of_cls_alone_or_of_no_tokens_are_fitted(tokens):
    for there in {0, min(1, tokens), tokens}:
        value = torch.full((1, there + 16, 2), 7.0)
        value[:, :there] = torch.arange(1, there + 1)[:, None]
        fitted = fitted_positions(value, (2, 3), tokens)
        expected = [*range(1, there + 1), *[0] * (tokens - there), *[7] * 6]
        assert fitted.shape == (1, tokens + 6, 2)
        torch.testing.assert_close(fitted[0, :, 1], torch.tensor(expected).float())
        assert fitted_positions(fitted, (2, 3), tokens) is fitted
