"""Any network of timm is a backbone: dozens of families, at toy size, keep the contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from timm.data import IMAGENET_INCEPTION_MEAN
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.attention import AttentionRequest
from models.backbones.base import AttentionBackbone, Backbone, GlobalAttentionBackbone
from models.backbones.stored import pack, unpack
from models.backbones.swin import Swin
from models.backbones.swin_v2 import SwinV2
from models.backbones.timm_any import TimmViT, build
from models.backbones.timm_maps import TimmMaps
from models.backbones.weights import load_state, load_weights
from models.fusions.base import attention_maps
from models.memory.chunking import forward_in_chunks

_VIT = {"embed_dim": 24, "depth": 2, "num_heads": 3}


@dataclass(frozen=True)
class Family:
    """A model of timm and the sizes that make it small."""

    model: str
    sizes: dict[str, Any]
    side: int = 64


VITS = {
    "vit": Family("vit_small_patch16_224", _VIT),
    "deit3": Family("deit3_small_patch16_224", _VIT),  # LayerScale
    "dinov2": Family("vit_small_patch14_reg4_dinov2", _VIT, 56),  # registers
    "distilled": Family("deit_small_distilled_patch16_224", _VIT),
    "qk_norm": Family("test_vit4", _VIT | {"qk_norm": True}),
    "parallel": Family(
        "vit_base_patch16_xp_224", _VIT | {"qkv_bias": True}
    ),  # blocks that attend by themselves
    "siglip": Family("vit_base_patch16_siglip_224", _VIT),  # no CLS, pooled by attention
    "gap": Family("vit_base_patch16_224", _VIT | {"global_pool": "avg", "class_token": False}),
    "eva02": Family("eva02_tiny_patch14_224", _VIT, 56),  # rotary positions, queries' bias apart
    "dinov3": Family("vit_small_patch16_dinov3", _VIT),  # rotary in halves, registers
    "mixed_rope": Family("vit_small_patch16_rope_mixed_224", _VIT),  # learnt frequencies
    "beit": Family("beit_base_patch16_224", _VIT),  # relative positions
    "relpos": Family("vit_relpos_small_patch16_224", _VIT),
    "relpos_mlp": Family("vit_srelpos_small_patch16_224", _VIT),  # shared by all blocks
}
_PYRAMID = {"embed_dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)}
MAPS = {
    "convnext": Family("convnext_tiny", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}),
    "resnet": Family("test_resnet", {}),
    "efficientnet": Family("test_efficientnet", {}),
    "mobilenet": Family("mobilenetv3_small_050", {}),
    "regnet": Family("regnetx_002", {}),
    "mambaout": Family("test_mambaout", {}),
    "pvt": Family("pvt_v2_b0", _PYRAMID),
    "swin_v2": Family(
        "swinv2_tiny_window8_256",
        {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)},
        128,
    ),
    "mixer": Family("mixer_s32_224", {}),
    "cait": Family("cait_xxs24_224", _VIT),
    "hiera": Family("hiera_tiny_224", {"embed_dim": 8, "stages": (1, 1, 1, 1)}, 224),
}
FAMILIES = {
    **VITS,
    **MAPS,
    "swin": Family(
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 12, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 3, 4), "window_size": 4},
    ),
}


def made(name: str, layers: str = "last", **settings: Any) -> Any:
    family = FAMILIES[name]
    torch.manual_seed(0)
    told = {"image_size": family.side, "layers": layers} | settings
    return shaken(build(family.model, **told, **family.sizes)).eval()


def shaken(backbone: Backbone) -> Backbone:
    """Moves every weight away from where it starts, so that each one shows."""
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return backbone


def images(name: str, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    side = FAMILIES[name].side
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_timms(name):
    backbone = made(name)
    x = images(name)
    pixels = backbone.normalise(x)
    found = backbone(x)
    expected = backbone.net(pixels)  # without classifier: the pooled features
    torch.testing.assert_close(found.pooled, expected, rtol=1e-5, atol=1e-6)
    assert found.pooled.shape == (2, backbone.embed_dim)
    (last,), (stride,) = found.maps, found.strides
    assert last.shape[1:] == (*backbone.map_channels, *(-(-x.shape[-1] // stride),) * 2)
    prefix = backbone.num_prefix if isinstance(backbone, AttentionBackbone) else 0
    assert found.prefix[0].shape == (2, prefix, last.shape[1])
    kinds = dict.fromkeys(VITS, TimmViT) | dict.fromkeys(MAPS, TimmMaps)
    kinds |= {"swin": Swin, "swin_v2": SwinV2}
    assert type(backbone) is kinds[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_are_those_of_all_layers(name):
    backbone = made(name)
    x = images(name)
    layers = backbone.layer_maps(x)
    count = len(backbone.net.feature_info)
    everything = made(name, f"last{count}")
    maps = everything(x).maps
    assert len(maps) == count
    for channels, stride, each in zip(
        everything.map_channels, everything.map_strides, maps, strict=True
    ):
        assert each.shape[1:] == (channels, *(-(-x.shape[-1] // stride),) * 2)
    chosen = made(name, "0,-1")(x).maps
    assert torch.equal(chosen[0], maps[0])
    assert torch.equal(chosen[1], maps[-1])
    if name != "swin":  # which gives its blocks
        assert [each.shape for each in layers.values()] == [each.shape for each in maps]


@pytest.mark.parametrize("name", FAMILIES)
def test_frozen_means_frozen_and_the_last_stage_is_the_end(name):
    backbone = made(name)
    backbone.freeze(1)
    backbone.train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    found = backbone(images(name, 4))
    loss = found.pooled.square().sum() + found.maps[0].square().sum()
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    assert any(gradient is not None for gradient in gradients)
    with torch.no_grad():
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter -= 0.1 * (torch.ones_like(parameter) if gradient is None else gradient)
    changed = {
        key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])
    }
    first = backbone.net.feature_info[0]["module"]
    assert changed
    assert not any(key.startswith(f"net.{first}.") for key in changed)
    backbone.freeze()
    backbone.train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone(images(name, 4))
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def gradients(backbone: Backbone, pooled: Any) -> list[Tensor]:
    backbone.zero_grad()
    torch.manual_seed(2)
    found = pooled()
    (found.square().sum() + found[:, -1].exp().sum()).backward()
    return [p.grad.clone() for p in backbone.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", FAMILIES)
def test_chunked_has_the_gradient_of_the_whole(name):
    backbone = made(name).double().train()
    x = images(name, 5)
    chunks, modules = x.split([3, 2]), backbone.modules()
    # A BatchNorm sees chunks, and a dropout (RelPos has one) draws anew for each.
    whole = not any(isinstance(m, _BatchNorm | nn.Dropout) and getattr(m, "p", 1) for m in modules)

    def expected() -> Tensor:
        parts = [x] if whole else chunks
        return torch.cat([backbone(part).pooled for part in parts])

    def chunked() -> Tensor:
        return forward_in_chunks(
            backbone, lambda part: backbone(part).pooled, chunks, torch.device("cpu")
        )

    for found, wanted in zip(
        gradients(backbone, chunked), gradients(backbone, expected), strict=True
    ):
        scale = max(float(wanted.abs().max()), 1e-6)
        assert float((found - wanted).abs().max()) < 1e-6 * scale  # rotary angles are float32


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_of_timm_is_loaded_by_its_names(name, tmp_path):
    family = FAMILIES[name]
    backbone = made(name)
    torch.manual_seed(3)
    # With its classifier, as it is published.
    sizes = {"img_size": family.side} if "img_size=" in str(backbone.plain) else {}
    source = timm.create_model(family.model, **family.sizes, **sizes).eval()
    for value in source.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.05, 0.15)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    report = load_weights(backbone, str(tmp_path / "weights.pth"))
    assert report is not None
    assert report.coverage == 1
    assert not report.missing
    source.reset_classifier(0)
    for key, value in source.state_dict().items():
        assert torch.equal(backbone.net.state_dict()[key], value), key


def test_a_file_of_another_model_is_refused(tmp_path):
    torch.save(made("resnet").net.state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"resnet\.pth is not loaded"):
        load_weights(made("convnext"), str(tmp_path / "resnet.pth"))
    state = made("convnext").net.state_dict()
    del state["head.norm.weight"]  # a head without classifier is a part of the features
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(ValueError, match=r"It lacks.*head\.norm\.weight"):
        load_weights(made("convnext"), str(tmp_path / "cut.pth"))


def test_files_of_another_image_or_patch_size_are_resized(tmp_path):
    source = build("vit_small_patch14_reg4_dinov2", image_size=112, **_VIT)
    torch.save(source.net.state_dict(), tmp_path / "large.pth")
    report = load_weights(made("dinov2"), str(tmp_path / "large.pth"))
    assert report is not None
    assert report.resized == ("pos_embed",)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_kept_and_given_back(name):
    backbone = made(name, "0,-1")
    request = None
    if isinstance(backbone, GlobalAttentionBackbone):
        request = AttentionRequest((-1,), "factors")
    elif isinstance(backbone, AttentionBackbone):
        request = AttentionRequest((-1,), "mean")
    with torch.no_grad():
        found = backbone(images(name), request)
    given = unpack(pack(found), backbone)
    halves = {"rtol": 2e-3, "atol": 2e-3 * float(found.pooled.abs().max())}
    torch.testing.assert_close(given.pooled, found.pooled, **halves)
    for first, second in zip(given.maps, found.maps, strict=True):
        torch.testing.assert_close(first, second, rtol=2e-3, atol=2e-3 * float(second.abs().max()))
    for first, second in zip(given.factors or (), found.factors or (), strict=True):
        rows = (each.rows("mean").weights for each in (first, second))
        torch.testing.assert_close(*rows, rtol=0.05, atol=1e-3)


def naive(attn: Any, x: Tensor, **inputs: Any) -> Tensor:
    """softmax(q kᵀ / sqrt(d) + bias) written out, from the module's own weights."""
    heads = attn.num_heads
    if hasattr(attn, "in_proj"):  # MLP and attention in one projection
        qkv = attn.in_proj(attn.in_norm(x))[..., -3 * x.shape[-1] :]
        q, k, _ = qkv.chunk(3, -1)
    elif attn.qkv is not None:
        qkv = x @ attn.qkv.weight.T
        if attn.qkv.bias is not None:
            qkv = qkv + attn.qkv.bias
        q, k, _ = qkv.chunk(3, -1)
        if getattr(attn, "q_bias", None) is not None:
            q = q + attn.q_bias
    else:
        q, k = attn.q_proj(x), attn.k_proj(x)
    q, k = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k))
    if hasattr(attn, "q_norm"):
        q, k = attn.q_norm(q), attn.k_norm(k)
    if inputs.get("rope") is not None:
        prefix = attn.num_prefix_tokens
        q, k = (
            torch.cat([each[:, :, :prefix], rotated(each[:, :, prefix:], inputs["rope"], attn)], 2)
            for each in (q, k)
        )
    logits = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    if getattr(attn, "relative_position_bias_table", None) is not None:
        count = x.shape[1]
        table = attn.relative_position_bias_table[attn.relative_position_index.flatten()]
        logits = logits + table.unflatten(0, (count, count)).permute(2, 0, 1)
    if getattr(attn, "rel_pos", None) is not None:
        logits = logits + attn.rel_pos.get_bias()
    if inputs.get("shared_rel_pos") is not None:
        logits = logits + inputs["shared_rel_pos"]
    return logits.softmax(-1)


def rotated(x: Tensor, rope: Tensor, attn: Any) -> Tensor:
    """Rotates pairs of dimensions by their angles: neighbours, or those half the width apart."""
    sine, cosine = rope.chunk(2, -1)
    if attn.rotate_half:
        first, second = x.chunk(2, -1)
        turned = torch.cat([-second, first], -1)
    else:
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return x * cosine + turned * sine


@pytest.mark.parametrize("name", VITS)
def test_attention_is_the_softmax_of_the_modules_own_queries_and_keys(name):
    backbone = made(name).double()
    x = images(name)
    expected: dict[int, Tensor] = {}

    def keep(block: int) -> Any:
        def hook(attn: Any, args: tuple[Tensor, ...], inputs: dict[str, Any]) -> None:
            expected[block] = naive(attn, args[0], **inputs)

        return hook

    for block, attn in enumerate(backbone.attention_modules()):
        attn.register_forward_pre_hook(keep(block), with_kwargs=True)
    plain = backbone(x)
    assert sorted(expected) == [0, 1]
    prefix = backbone.num_prefix
    for queries in ("all", "mean", "factors"):
        found = backbone(x, AttentionRequest((0, 1), queries, 1))
        assert torch.equal(found.pooled, plain.pooled)
        for block in (0, 1):
            rows = expected[block][:1]
            if queries == "mean":
                rows = rows[:, :, prefix:].mean(2, keepdim=True)
            if queries == "factors":
                answer = found.factors[block].rows("all")
            else:
                answer = found.attention[block]
            torch.testing.assert_close(answer.weights, rows, rtol=0, atol=1e-12)
            assert answer.num_prefix == prefix
            assert answer.patch_maps().shape[-2:] == plain.maps[0].shape[-2:]
    cls = AttentionRequest((1,), "cls")
    if backbone.has_cls:
        torch.testing.assert_close(
            backbone(x, cls).attention[0].weights, expected[1][:, :, :1], rtol=0, atol=1e-12
        )
    else:
        with pytest.raises(ValueError, match="no CLS token"):
            backbone(x, cls)


def test_registers_are_no_class_token():
    backbone = build("vit_medium_patch16_reg4_gap_256", image_size=64, **_VIT).eval()
    assert (backbone.num_prefix, backbone.has_cls, backbone.pool) == (4, False, "mean")
    x = images("vit")
    found = backbone(x, AttentionRequest((-1,), "factors"))
    mean = backbone(x, AttentionRequest((-1,), "mean")).attention[0].patch_maps()[:, :, 0]
    torch.testing.assert_close(attention_maps(found)[0], mean)
    torch.testing.assert_close(
        attention_maps(unpack(pack(found), backbone))[0], mean, atol=1e-3, rtol=0
    )


def test_the_pooled_features_say_whose_attention_is_trained():
    found = {name: made(name).pool for name in ("vit", "dinov2", "siglip", "gap")}
    assert found == {"vit": "cls", "dinov2": "cls", "siglip": "mean", "gap": "mean"}


def test_attention_that_is_not_softmax_of_all_pairs_is_refused():
    for name in MAPS:
        with pytest.raises(ValueError, match="is not shown"):
            made(name)(images(name), AttentionRequest((-1,), "mean"))


@pytest.mark.skipif(not timm.is_model("vit_dpwee_patch16_reg1_gap_256"), reason="timm is older")
def test_differential_attention_is_no_softmax():
    backbone = build("vit_dpwee_patch16_reg1_gap_256", image_size=64, **_VIT)
    assert type(backbone) is TimmMaps


def test_images_are_normalised_as_the_model_expects():
    assert made("vit").mean.flatten().tolist() == pytest.approx(IMAGENET_INCEPTION_MEAN)
    assert made("convnext").mean.flatten().tolist() == pytest.approx((0.485, 0.456, 0.406))


@pytest.mark.slow
def test_one_model_of_every_family_is_a_backbone():
    """As sketches: only the shapes of their features are looked at."""
    refused = {}
    for family in timm.list_modules():
        names = timm.list_models(module=family)
        if not names:
            continue
        small = [name for name in names if "tiny" in name or "small" in name] or names
        side = timm.get_pretrained_cfg(small[0]).input_size[1]
        try:
            with torch.device("meta"):
                backbone = build(small[0], image_size=side).eval()
                found = backbone(torch.zeros(2, 3, side, side))
        except (ValueError, RuntimeError) as error:
            refused[family] = str(error)
            continue
        assert found.pooled.shape == (2, backbone.embed_dim), family
        assert found.maps[0].shape[:2] == (2, *backbone.map_channels), family
        assert backbone.sources.keys() <= {"pretrained"}
    assert refused.keys() <= {"gemma4_vit"}, refused  # which asks for a number while it runs


def test_settings_reach_timm():
    dilated = build("test_resnet", image_size=64, output_stride=8)
    assert dilated.map_strides == (8,)
    finer = build("vit_small_patch16_224", image_size=64, patch_size=8, **_VIT)
    assert finer.map_strides == (8,)
    deep = build("vit_small_patch16_224", image_size=64, drop_path=0.5, **_VIT)
    rates = [getattr(block.drop_path1, "drop_prob", 0) for block in deep.net.blocks]
    assert rates == [0, 0.5]
    assert "drop_path" not in str(deep.plain)


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        ("convnext_tinny", {}, "no such model. Did you mean timm/convnext_tiny"),
        ("vit_smal", {}, "Did you mean timm/vit_small_patch"),
        ("§", {}, r"no such model. See timm.list_models\(\)"),
        ("convnext_tiny.mine", {}, "no weights mine of it. Its tags: .*fb_in1k"),
        ("vgg11", {"output_stride": 16}, "64 px and output_stride=16"),
        ("test_resnet", {"patch_size": 8}, "64 px and patch_size=8: .*patch_size"),
    ],
)
def test_what_cannot_be_built_is_said_in_words(model, settings, words):
    with pytest.raises(ValueError, match=f"^--backbone.name timm/{model}.*{words}"):
        build(model, image_size=64, **settings)


def test_a_model_without_intermediates_is_refused():
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pretrained_cfg = {"fixed_input_size": False}
            self.feature_info: list[Any] = []

    def plain_model(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return Plain()

    plain_model.__module__ = "timm.models.added"
    registered = timm.models._registry._model_entrypoints
    registered["plain_model"] = plain_model
    try:
        with pytest.raises(ValueError, match=r"no intermediate features \(forward_intermediates"):
            build("plain_model", image_size=64)
    finally:
        del registered["plain_model"]


def test_networks_made_for_one_size_say_so():
    backbone = made("beit")
    with pytest.raises(ValueError, match="takes 64 x 64 px only"):
        backbone(torch.zeros(1, 3, 96, 96))
    with pytest.raises(ValueError, match=r"--dino.local_crop_size 32: .* 64 x 64 px only"):
        backbone.check_side(32, "dino.local_crop_size")
    assert made("vit").fixed_side is None
    made("dinov3")(torch.zeros(1, 3, 96, 48))  # any whole patches


def test_relative_positions_of_another_image_size_are_resized():
    from timm.models.beit import checkpoint_filter_fn

    name, sizes = "beit_base_patch16_224", {"embed_dim": 24, "depth": 2, "num_heads": 3}
    there = timm.create_model(name, num_classes=0, img_size=128, **sizes)
    for value in there.state_dict().values():
        if value.is_floating_point():
            value.normal_()
    backbone = build(name, image_size=64, **sizes)
    report = load_state(backbone, there.state_dict(), "file")
    assert len(report.resized) == 2
    expected = checkpoint_filter_fn(dict(there.state_dict()), backbone.net)
    for key, value in backbone.net.state_dict().items():
        torch.testing.assert_close(value, expected[key])


def test_weights_that_cannot_be_fetched_name_the_file_to_get(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    backbone = build("vit_small_patch14_dinov2.lvd142m", image_size=56)
    page = "https://huggingface.co/timm/vit_small_patch14_dinov2.lvd142m"
    with pytest.raises(ValueError, match=f"(?s)Could not fetch.*{page}.*--backbone.weights FILE"):
        load_weights(backbone, "pretrained")
    assert "dino" not in backbone.sources
