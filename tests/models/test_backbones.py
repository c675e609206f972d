"""Every backbone keeps the contract."""

from typing import Any

import pytest
import torch
from torch import nn

from models.attention import AttentionRequest
from models.backbones.base import AttentionBackbone, Backbone
from models.backbones.botnet import botnet50
from models.backbones.resnet import resnet18, resnet50
from models.backbones.vit import vit_base, vit_small, vit_tiny
from models.backbones.vit_pytorch import vit_pytorch
from models.backbones.weights import load_weights
from models.layer_numbers import parse_layers

SMALL = {"image_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 24, "num_heads": 3}
TRANSFORMERS = [vit_tiny, vit_pytorch]


def build(make: Any, **settings: Any) -> Backbone:
    torch.manual_seed(0)
    size = SMALL if make in TRANSFORMERS else {"image_size": 32}
    backbone: Backbone = make(**size | settings)
    return backbone.eval()


def images(height: int = 32, width: int = 32, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("make", "stride"), [(resnet50, 8), (resnet50, 32), (botnet50, 16)])
def test_dilated_weights_are_for_a_dilated_network(make, stride):
    backbone = make(image_size=64, output_stride=stride)
    assert ("coco" in backbone.sources) is (stride == 8)
    if stride > 8:
        with pytest.raises(ValueError, match=r"weights coco: there are none for .*output stride"):
            load_weights(backbone, "coco")


@pytest.mark.parametrize("make", [vit_tiny, vit_pytorch, resnet18, resnet50])
@pytest.mark.parametrize("layers", ["last", "last3", "0,2"])
@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
def test_features_have_the_promised_shapes(make, layers, size):
    backbone = build(make, layers=layers)
    found = backbone(images(*size))
    count = {"last": 1, "last3": 3, "0,2": 2}[layers]
    assert found.pooled.shape == (2, backbone.embed_dim)
    assert len(found.maps) == len(found.prefix) == len(found.strides) == count
    for features, prefix, stride in zip(found.maps, found.prefix, found.strides, strict=True):
        assert features.shape[-2:] == (size[0] // stride, size[1] // stride)
        prefix_tokens = backbone.num_prefix if isinstance(backbone, AttentionBackbone) else 0
        assert prefix.shape == (2, prefix_tokens, features.shape[1])
    assert found.attention is None


@pytest.mark.parametrize("make", [vit_tiny, vit_pytorch, resnet18])
def test_uint8_and_unit_floats_are_the_same_image(make):
    backbone = build(make)
    floats = images().float() / 255
    first, second = backbone(images()), backbone(floats)
    torch.testing.assert_close(first.pooled, second.pooled)
    assert torch.equal(floats, images().float() / 255)  # it normalises a copy


@pytest.mark.parametrize("make", TRANSFORMERS)
def test_maps_and_pooled_come_after_the_final_norm(make):
    for pool in ("cls", "mean"):
        found = build(make, pool=pool)(images())
        tokens = found.maps[0].flatten(2).transpose(1, 2)
        expected = found.prefix[0][:, 0] if pool == "cls" else tokens.mean(1)
        torch.testing.assert_close(found.pooled, expected)
        # A fresh LayerNorm leaves every token centred with unit variance.
        torch.testing.assert_close(tokens.mean(-1), torch.zeros(2, 16), atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", TRANSFORMERS)
def test_sides_off_the_patch_grid_are_refused(make):
    with pytest.raises(ValueError, match="multiples of 8"):
        build(make)(images(36, 32))


def unfused(backbone: Any, x: torch.Tensor, block: int) -> torch.Tensor:
    """Attention of the library's own unfused path."""
    kept = []

    def keep(_: nn.Module, inputs: tuple[torch.Tensor, ...], __: torch.Tensor) -> None:
        kept.append(inputs[0])

    if hasattr(backbone.net, "blocks"):
        attn = backbone.net.blocks[block].attn
        attn.fused_attn = False
        handle = attn.attn_drop.register_forward_hook(keep)
    else:
        handle = backbone.net.transformer.layers[block][0].dropout.register_forward_hook(keep)
    backbone(x)
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("make", TRANSFORMERS)
@pytest.mark.parametrize("block", [0, 2])
def test_attention_equals_the_unfused_path(make, block):
    backbone = build(make).double()
    expected = unfused(backbone, images(40, 32), block)
    found = backbone(images(40, 32), AttentionRequest((block - 3,), "all")).attention
    assert [attention.block for attention in found] == [block]
    assert found[0].grid == (5, 4)
    torch.testing.assert_close(found[0].weights, expected, rtol=0, atol=1e-8)
    cls = backbone(images(40, 32), AttentionRequest((block,), "cls", 1)).attention[0]
    torch.testing.assert_close(cls.weights, expected[:1, :, :1], rtol=0, atol=1e-8)
    mean = backbone(images(40, 32), AttentionRequest((block,), "mean")).attention[0]
    torch.testing.assert_close(mean.weights[:, :, 0], expected[:, :, 1:].mean(2), rtol=0, atol=1e-8)


@pytest.mark.parametrize("make", TRANSFORMERS)
def test_asking_for_attention_changes_nothing_else(make):
    backbone = build(make)
    plain, asked = backbone(images()), backbone(images(), AttentionRequest((0, 1, 2), "all"))
    assert torch.equal(plain.pooled, asked.pooled)
    assert asked.attention[0].patch_maps().shape == (2, 3, 17, 4, 4)


def test_attention_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no attention"):
        build(resnet18)(images(), AttentionRequest())
    with pytest.raises(ValueError, match="use 0 … 2"):
        build(vit_tiny)(images(), AttentionRequest((3,)))


@pytest.mark.parametrize("make", TRANSFORMERS)
def test_positions_are_untouched_at_native_size(make):
    backbone: Any = build(make)
    before = backbone(images()).pooled
    table = backbone.net.pos_embed if make is vit_tiny else backbone.net.pos_embedding
    with torch.no_grad():
        table += torch.randn_like(table)
    assert not torch.allclose(before, backbone(images()).pooled)
    if make is vit_tiny:
        patches = backbone.net.patch_embed(backbone.normalise(images())).flatten(1, 2)
        plain = torch.cat([backbone.net.cls_token.expand(2, -1, -1), patches], 1) + table
        found = backbone.net._pos_embed(backbone.net.patch_embed(backbone.normalise(images())))
        assert torch.equal(plain, found)


def test_vit_pytorch_equals_the_library_at_native_size():
    backbone: Any = build(vit_pytorch)
    tokens = backbone.net(backbone.normalise(images()))
    torch.testing.assert_close(backbone(images()).pooled, tokens[:, 0])


def test_output_stride_dilates():
    for stride in (8, 16, 32):
        backbone = build(resnet50, output_stride=stride, layers="last4")
        found = backbone(images(64, 64))
        assert found.strides[-1] == stride
        assert found.maps[-1].shape[-1] == 64 // stride
    with pytest.raises(ValueError, match="needs a ResNet-50"):
        build(resnet18, output_stride=8)


def test_cifar_stem_keeps_the_resolution():
    found = build(resnet18, stem="cifar", layers="last4")(images())
    assert [features.shape[-1] for features in found.maps] == [32, 16, 8, 4]


@pytest.mark.parametrize(
    ("make", "millions", "width"),
    [
        (vit_tiny, 5.5, 192),
        (vit_small, 21.7, 384),
        (vit_base, 85.8, 768),
        (resnet18, 11.2, 512),
        (resnet50, 23.5, 2048),
    ],
)
def test_published_sizes(make, millions, width):
    with torch.device("meta"):
        backbone = make(image_size=224)
    assert backbone.embed_dim == width
    count = sum(p.numel() for p in backbone.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("make", [vit_tiny, vit_pytorch, resnet18])
@pytest.mark.parametrize("last", [0, 1])
def test_frozen_means_frozen(make, last):
    backbone = build(make)
    backbone.freeze(last)
    backbone.train()
    assert backbone.frozen == (last == 0)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    trained = [p for p in backbone.parameters() if p.requires_grad]
    assert bool(trained) == (last > 0)
    for _ in range(2):
        loss = backbone(images(count=4)).pooled.square().sum()
        if trained:
            optimizer = torch.optim.SGD(trained, 0.1)
            loss.backward()
            optimizer.step()
    changed = {n for n, v in backbone.state_dict().items() if not torch.equal(v, before[n])}
    last_stage = {"vit_tiny": "blocks.2|net.norm", "vit_pytorch": "layers.2|transformer.norm"}
    allowed = last_stage.get(make.__name__, "layer4").split("|")
    assert bool(changed) == (last > 0)
    assert all(any(part in name for part in allowed) for name in changed), changed


def test_gradients_reach_the_image_of_a_frozen_backbone():
    backbone = build(vit_tiny)
    backbone.freeze()
    pixels = (images().float() / 255).requires_grad_()
    pooled = backbone(pixels).pooled
    (
        pooled * torch.randn_like(pooled)
    ).sum().backward()  # the sum of normalised features is constant
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("last", (11,)), ("last4", (8, 9, 10, 11)), ("2,5,-1", (2, 5, 11))],
)
def test_layers(text, expected):
    assert parse_layers(text, 12) == expected


@pytest.mark.parametrize("text", ["first", "last13", "12", "last0", ""])
def test_impossible_layers(text):
    with pytest.raises(ValueError, match="layer"):
        parse_layers(text, 12)
