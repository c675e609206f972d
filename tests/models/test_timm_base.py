"""Features of timm's networks are timm's, of the ones without a name here as well."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.attention import AttentionRequest
from models.backbones.swin import build
from models.backbones.vit import ViT, vit_tiny


def vit(**settings: Any) -> ViT:
    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 24, "num_heads": 3}
    return vit_tiny(**sizes | settings).eval()


def swin(**settings: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"image_size": 64, "window_size": 4}
    return build("swin_tiny", 12, (2, 2, 2, 2), (1, 2, 3, 4), **sizes | settings).eval()


def bare(**settings: Any) -> ViT:
    """A network of timm's that no name builds."""
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
    net = VisionTransformer(**sizes | settings, num_classes=0, dynamic_img_size=True)
    return ViT(net, "cls" if net.has_class_token else "mean", "last3").eval()


def images(size: int = 64, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def hooks(backbone: Any) -> int:
    modules = list(backbone.modules())
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in modules)


@pytest.mark.parametrize("layers", ["last", "last3", "0,1"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_vit_features_are_timms(layers, pool):
    backbone = vit(layers=layers, pool=pool)
    net, pixels = backbone.net, backbone.normalise(images())
    found = backbone(images())
    tokens = net.forward_features(pixels)
    head = net.forward_head(tokens, pre_logits=True) if pool == "cls" else tokens[:, 1:].mean(1)
    assert torch.equal(found.pooled, head)
    expected = net.get_intermediate_layers(
        pixels, backbone.layers, reshape=True, return_prefix_tokens=True, norm=True
    )
    for features, prefix, (patches, classes) in zip(
        found.maps, found.prefix, expected, strict=True
    ):
        assert torch.equal(features, patches)
        assert torch.equal(prefix, classes)
    stream = net.get_intermediate_layers(pixels, 3, reshape=True)
    assert list(backbone.layer_maps(images())) == ["blocks.0", "blocks.1", "blocks.2"]
    for features, patches in zip(backbone.layer_maps(images()).values(), stream, strict=True):
        assert torch.equal(features, patches)


@pytest.mark.parametrize("layers", ["last", "last4", "0,1"])
def test_swin_features_are_timms(layers):
    backbone = swin(layers=layers)
    net, pixels = backbone.net, backbone.normalise(images())
    found = backbone(images())
    assert torch.equal(found.pooled, net.forward_head(net.forward_features(pixels), True))
    expected = net.forward_intermediates(pixels, norm=True, intermediates_only=True)
    for features, layer in zip(found.maps, backbone.layers, strict=True):
        assert torch.equal(features, expected[layer])
    stream = net.forward_intermediates(pixels, intermediates_only=True)
    blocks = list(backbone.layer_maps(images()).values())
    assert all(torch.equal(blocks[2 * i + 1], stage) for i, stage in enumerate(stream))
    assert hooks(backbone) == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"reg_tokens": 2, "qk_norm": True},
        {"class_token": False, "global_pool": "avg"},
        {"init_values": 0.1, "pre_norm": True},
    ],
)
def test_other_networks_of_timm_need_no_code(settings):
    backbone = bare(**settings).double()
    tokens = backbone.net.forward_features(backbone.normalise(images()))
    prefix = backbone.num_prefix
    found = backbone(images(), AttentionRequest((0, 2), "all"))
    assert torch.equal(found.prefix[-1], tokens[:, :prefix])
    assert torch.equal(found.maps[-1].flatten(2).transpose(1, 2), tokens[:, prefix:])
    for answer in found.attention:
        attn = backbone.net.blocks[answer.block].attn
        kept: list[Tensor] = []
        attn.fused_attn = False
        handle = attn.attn_drop.register_forward_pre_hook(lambda _, x, kept=kept: kept.append(*x))
        backbone(images())
        handle.remove()
        torch.testing.assert_close(answer.weights, kept[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [vit, swin])
def test_a_compiled_pass_without_a_request_is_one_graph(make):
    backbone = make()
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images()).pooled, backbone(images()).pooled)
