"""BoTNet attends by its definition, at any size, and takes a ResNet-50's weights over."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import AttentionRequest
from models.backbones.botnet import BoTNet, RelativeAttention2d, botnet50
from models.backbones.resnet import resnet50
from models.backbones.weights import load_state


def net(**settings) -> BoTNet:
    torch.manual_seed(0)
    return botnet50(**{"image_size": 64} | settings).eval()


def images(height: int = 64, width: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=generator)


def reference(module: RelativeAttention2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, query by query."""
    channels, height, width = x.shape
    d = channels // module.heads
    weights = module.to_qkv.weight[:, :, 0, 0].reshape(3, module.heads, d, channels)
    q, k, v = torch.einsum("phdc,cij->phijd", weights, x)
    q = q * d**-0.5
    rows = torch.zeros(module.heads, height, width, height, width, dtype=x.dtype)
    for head in range(module.heads):
        for i in range(height):
            for j in range(width):
                logits = torch.empty(height, width, dtype=x.dtype)
                for a in range(height):
                    for b in range(width):
                        position = (
                            module.rel_height[a - i + height - 1]
                            + module.rel_width[b - j + width - 1]
                        )
                        logits[a, b] = q[head, i, j] @ (k[head, a, b] + position)
                rows[head, i, j] = logits.flatten().softmax(0).view(height, width)
    mixed = torch.einsum("nijab,nabd->ndij", rows, v).reshape(channels, height, width)
    return mixed, rows.flatten(3).flatten(1, 2)


def test_attention_is_its_definition():
    torch.manual_seed(0)
    module = RelativeAttention2d(8, (3, 4), heads=2).double()
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        for image, mixed, rows in zip(x, module(x), module.rows(x), strict=True):
            expected_mixed, expected_rows = reference(module, image)
            torch.testing.assert_close(mixed, expected_mixed)
            torch.testing.assert_close(rows, expected_rows)


def test_positions_are_interpolated_on_other_grids():
    torch.manual_seed(0)
    small = RelativeAttention2d(8, (4, 4), heads=2).double()
    large = RelativeAttention2d(8, (6, 5), heads=2).double()
    large.load_state_dict(
        {
            **small.state_dict(),
            **{
                key: F.interpolate(
                    small.state_dict()[key].T[None],
                    size=2 * side - 1,
                    mode="linear",
                    align_corners=True,
                )[0].T
                for key, side in (("rel_height", 6), ("rel_width", 5))
            },
        }
    )
    x = torch.randn(1, 8, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(small(x), large(x))


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (50, 70)])
@pytest.mark.parametrize("stride", [16, 32])
def test_any_image_size(size, stride):
    backbone = net(output_stride=stride, layers="last2")
    with torch.no_grad():
        found = backbone(images(*size))
    assert backbone.map_strides == (16, stride)
    for features, each in zip(found.maps, (16, stride), strict=True):
        assert features.shape[-2:] == (-(-size[0] // each), -(-size[1] // each))
    assert found.pooled.shape == (2, 2048)


def test_size_is_the_papers():
    count = sum(p.numel() for p in botnet50(image_size=224).parameters())
    # A ResNet-50 less three 3 x 3 convolutions, plus q, k, v and relative positions.
    positions = 2 * 128 * (27 + 13 + 13)
    assert count == 23_508_032 - 3 * 512 * 512 * 9 + 3 * 3 * 512 * 512 + positions
    assert round(count / 1e6, 1) == 18.8


def test_rows_on_request():
    backbone = net()
    with torch.no_grad():
        found = backbone(images(64, 96), AttentionRequest((0, -1), "all"))
        plain = backbone(images(64, 96))
        mean = backbone(images(64, 96), AttentionRequest((0,), "mean", num_images=1)).attention
    torch.testing.assert_close(found.pooled, plain.pooled)
    first, last = found.attention
    assert (first.block, last.block) == (0, 2)
    assert (first.grid, last.grid) == ((4, 6), (2, 3))
    assert first.weights.shape == (2, 4, 24, 24)
    torch.testing.assert_close(first.weights.sum(-1), torch.ones(2, 4, 24))
    torch.testing.assert_close(mean[0].weights, first.weights[:1].mean(2, keepdim=True))
    assert not any(block.conv2[0]._forward_pre_hooks for block in backbone._attending())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (half,) = backbone(images(), AttentionRequest((0,), "all")).attention
    assert half.weights.dtype == torch.float32
    with pytest.raises(ValueError, match="no CLS token"):
        backbone(images(), AttentionRequest((0,), "cls"))
    with pytest.raises(ValueError, match="16 or 32"):
        net(output_stride=8)


def test_a_resnets_weights_are_reused_and_reported():
    torch.manual_seed(1)
    resnet = resnet50(image_size=64)
    backbone = net()
    report = load_state(backbone, resnet.net.state_dict(), "a ResNet-50")
    assert len(report.unexpected) == 3
    assert all(key.endswith("conv2.weight") for key in report.unexpected)
    assert len(report.missing) == 9
    assert "missing: layer4.0.conv2.0." in str(report)
    assert 0.8 < report.coverage < 0.9
    own = backbone.net.state_dict()
    for key in report.matched:
        assert torch.equal(own[key], resnet.net.state_dict()[key])
    with pytest.raises(ValueError, match="another architecture"):
        load_state(resnet, backbone.net.state_dict(), "a BoTNet")


def test_it_trains_with_a_cifar_stem_and_shows_its_attention(train):
    code, folder = train(
        "botnet",
        backbone__name="botnet50",
        backbone__stem="cifar",
        trainer__max_steps=1,
        callbacks__attention_maps__enabled="true",
    )
    assert code == 0
    assert list((folder / "figures" / "attention_maps" / "train").glob("block-03/*.png"))
