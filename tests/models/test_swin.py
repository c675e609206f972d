"""Swin keeps the contract; its attention is the library's own, put back where it belongs."""

import pytest
import timm
import torch
from torch import Tensor, nn

from callbacks.effective_receptive_field import receptive_fields
from models.attention import AttentionRequest
from models.backbones.swin import Swin, build, swin_base, swin_small, swin_tiny
from models.backbones.weights import load_state
from tests.conftest import summary


def tiny(image_size: int = 64, layers: str = "last4", window: int = 4, **settings) -> Swin:
    torch.manual_seed(0)
    backbone = build(
        "swin_tiny",
        12,
        (2, 2, 2, 2),
        (1, 2, 3, 4),
        image_size=image_size,
        layers=layers,
        window_size=window,
        **settings,
    )
    for name, parameter in backbone.named_parameters():
        if "relative_position" in name:
            nn.init.normal_(parameter)  # fresh ones are nearly zero: a missing bias would not show
    return backbone.eval()


def images(height: int = 64, width: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_a_pyramid_of_maps(size):
    backbone = tiny()
    found = backbone(images(*size))
    assert backbone.map_channels == (12, 24, 48, 96)
    assert found.strides == backbone.map_strides == (4, 8, 16, 32)
    for features, stride, width in zip(found.maps, found.strides, (12, 24, 48, 96), strict=True):
        assert features.shape == (2, width, size[0] // stride, size[1] // stride)
    assert found.pooled.shape == (2, 96)
    assert found.prefix[0].shape == (2, 0, 12)
    with pytest.raises(ValueError, match="multiples of 32"):
        backbone(images(64, 80))


def test_features_are_timms():
    backbone = tiny()
    net = backbone.net
    expected = net.forward_features(backbone.normalise(images()))
    torch.testing.assert_close(backbone(images()).maps[-1], expected.movedim(-1, 1))
    torch.testing.assert_close(backbone(images()).pooled, expected.mean((1, 2)))
    early = tiny(layers="0,2")(images())
    assert all(map(torch.equal, early.maps, backbone(images()).maps[::2]))


def windowed(backbone: Swin, x: Tensor) -> list[Tensor]:
    """Every block's attention in windows, from the library's unfused path."""
    kept: list[Tensor] = []
    handles = []
    for stage in backbone.net.layers:
        for block in stage.blocks:
            block.attn.fused_attn = False
            hook = block.attn.softmax.register_forward_hook(lambda _, __, out: kept.append(out))
            handles.append(hook)
    backbone(x)
    for handle in handles:
        handle.remove()
    return kept


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (96, 128)])
def test_attention_is_the_librarys_put_back_on_the_grid(size):
    backbone = tiny()
    expected = windowed(backbone, images(*size))
    blocks = tuple(range(backbone.depth))
    answer = backbone(images(*size), AttentionRequest(blocks, "all")).attention
    assert len(answer) == 8
    flat = [block for stage in backbone.net.layers for block in stage.blocks]
    for attention, rows, block in zip(answer, expected, flat, strict=True):
        h, w = attention.grid
        assert attention.weights.shape == (2, block.attn.num_heads, h * w, h * w)
        wh, ww = block.window_size
        sh, sw = block.shift_size
        ph, pw = -(-h // wh) * wh, -(-w // ww) * ww
        per_image = (ph // wh) * (pw // ww)
        # Token by token: where does query (i, j) lie after the shift, and its keys?
        for i, j in ((0, 0), (h - 1, w - 1), (h // 2, w // 3), (0, w - 1)):
            y, x = (i - sh) % h, (j - sw) % w
            window = (y // wh) * (pw // ww) + x // ww
            inside = (y % wh) * ww + x % ww
            row = rows[per_image + window][:, inside]  # of the second image
            got = attention.weights[1, :, i * w + j].view(-1, h, w)
            total = torch.zeros_like(got)
            for key in range(wh * ww):
                ky, kx = (y // wh) * wh + key // ww, (x // ww) * ww + key % ww
                if ky < h and kx < w:
                    total[:, (ky + sh) % h, (kx + sw) % w] = row[:, key]
            torch.testing.assert_close(got, total)
    received = backbone(images(*size), AttentionRequest(blocks, "mean")).attention
    for mean, whole in zip(received, answer, strict=True):
        torch.testing.assert_close(mean.weights, whole.weights.mean(2, keepdim=True))


def test_some_blocks_are_shifted_and_some_windows_padded():
    backbone = tiny()
    shifted = [any(b.shift_size) for stage in backbone.net.layers for b in stage.blocks]
    assert shifted[:4] == [False, True, False, True]
    assert 96 // 8 % 4 == 0
    assert 160 // 16 % 4 != 0  # the rectangles above pad both sides,
    assert 128 // 16 % 4 == 0 != 96 // 16 % 4  # or one of them


def test_rows_sum_to_one_without_padding_and_images_can_be_left_out():
    backbone = tiny()
    (whole,) = backbone(images(), AttentionRequest((1,), "all")).attention
    torch.testing.assert_close(whole.weights.sum(-1), torch.ones(2, 1, 256))
    (mean,) = backbone(images(), AttentionRequest((1,), "mean")).attention
    assert mean.patch_maps().shape == (2, 1, 1, 16, 16)
    (first,) = backbone(images(), AttentionRequest((1,), "mean", num_images=1)).attention
    torch.testing.assert_close(first.weights, mean.weights[:1])


@pytest.mark.parametrize("queries", ["cls", "factors"])
def test_there_is_no_cls_and_no_global_attention(queries):
    with pytest.raises(ValueError, match="no CLS token and no global attention"):
        tiny()(images(), AttentionRequest((0,), queries))


def test_frozen_stages_and_receptive_fields():
    backbone = tiny(drop_path=0.5)
    backbone.freeze(1)
    backbone.train()
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert {name.removeprefix("net.").split(".")[0] for name in trained} == {"layers", "norm"}
    assert all(name.startswith(("net.layers.3.", "net.norm.")) for name in trained)
    assert not torch.equal(backbone(images()).pooled, backbone(images()).pooled)  # paths dropped
    whole = tiny().train()
    assert torch.equal(whole(images()).pooled, whole(images()).pooled)
    assert not backbone.net.layers[0].training
    assert backbone.net.layers[3].training
    names = list(backbone.eval().layer_maps(images()))
    assert names[0] == "layers.0.blocks.0"
    assert len(names) == backbone.depth
    fields = receptive_fields(backbone.layer_maps, [names[0], names[-1]], images())
    reached = {name: (field > 0).float().mean().item() for name, field in fields.items()}
    assert reached[names[0]] < reached[names[-1]] == 1.0


def test_weights_of_another_window_are_resized():
    small, large = tiny(window=2), tiny(window=4)
    report = load_state(small, large.net.state_dict(), "here")
    assert report.resized
    assert all("relative_position_bias_table" in key for key in report.resized)
    assert report.coverage == 1


def test_weights_in_the_names_of_swins_own_code():
    """Where a stage ends its patches are merged; timm does that where the next one begins."""
    source, target = tiny(), tiny()
    for name, value in source.net.state_dict().items():
        if value.is_floating_point():
            value.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.1)
    state = source.net.state_dict()
    written = {}
    for key, value in state.items():
        stage, merges, rest = key.partition(".downsample.")
        if merges:
            key = f"layers.{int(stage.removeprefix('layers.')) - 1}{merges}{rest}"
        written[f"model.{key}"] = value
    assert "model.layers.0.downsample.norm.weight" in written
    written |= {
        "model.head.weight": torch.zeros(5, 96),
        "model.layers.0.blocks.1.attn_mask": torch.zeros(16, 16, 16),
        "model.layers.0.blocks.1.attn.relative_position_index": torch.zeros(16, 16),
    }
    report = load_state(target, written, "here")
    assert report.coverage == 1
    assert not report.missing
    for ours, theirs in zip(target(images()).maps, source(images()).maps, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("make", "papers", "width"),
    [
        (swin_tiny, 28_288_354, 768),
        (swin_small, 49_606_258, 768),
        (swin_base, 87_768_224, 1024),
    ],
)
def test_parameter_counts_are_the_papers(make, papers, width):
    with torch.device("meta"):
        backbone = make(image_size=224)
    count = sum(p.numel() for p in backbone.parameters())
    assert count == papers - 1000 * (width + 1)  # less its classifier of 1000 classes


def test_pretrained_weights_are_those_of_its_windows(monkeypatch):
    def published(model: str) -> dict[str, Tensor]:
        return timm.create_model(model, num_classes=0).state_dict()

    monkeypatch.setattr("models.backbones.swin.pretrained", published)
    with torch.device("meta"):  # of what is asked for, shapes are enough
        backbone = swin_tiny(image_size=224)
        found, own = backbone.sources["pretrained"](), backbone.net.state_dict()
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in own.items()}


def test_a_swin_is_pretrained_and_looked_into(train):
    code, folder = train(
        "swin",
        backbone__name="swin_tiny",
        trainer__max_steps=1,
        callbacks__attention_maps__enabled="true",
        callbacks__effective_receptive_field__enabled="true",
    )
    assert code == 0
    assert summary(folder)["steps"] == 1
    assert list((folder / "figures" / "attention_maps" / "train").glob("block-12/*.png"))
