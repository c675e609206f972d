"""Heads are what their papers say, to the parameter."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.names import HEADS
from models.backbones.base import Features
from models.backbones.resnet import resnet18
from models.backbones.vit import vit_tiny
from models.heads.base import Head, concatenated
from models.heads.knn import KNN
from models.heads.weights import load_head
from utils.imports import load


def build(
    name: str, layers: int = 1, stride: int = 16, width: int = 384, classes: int = 21
) -> Head:
    torch.manual_seed(0)
    return filled(load(HEADS[name])((width,) * layers, (stride,) * layers, classes)).eval()


def filled(head: Head) -> Head:
    """The head, with something to remember where it learns nothing else."""
    if isinstance(head, KNN):
        shares = torch.eye(head.num_classes).repeat(20, 1)
        head.memory.fill(torch.randn(len(shares), head.in_channels), shares)
    return head


def features(
    size: tuple[int, int], layers: int = 1, stride: int = 16, width: int = 384, seed: int = 0
) -> Features:
    generator = torch.Generator().manual_seed(seed)
    grid = (size[0] // stride, size[1] // stride)
    maps = tuple(torch.randn(2, width, *grid, generator=generator) for _ in range(layers))
    prefix = tuple(torch.zeros(2, 1, width) for _ in range(layers))
    return Features(torch.zeros(2, width), maps, prefix, (stride,) * layers)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "layers", "stride", "expected"),
    [
        ("knn", 1, 16, 0),
        ("linear", 1, 16, 8_085),
        ("setr_naive", 1, 16, 105_237),
        ("setr_pup", 1, 16, 2_663_445),
        ("setr_pup", 1, 8, 2_663_445),
        ("setr_mla", 4, 16, 4_624_917),
        ("segformer_mlp", 4, 16, 662_293),
        ("segmenter_mask", 1, 16, 4_000_554),
        ("deeplabv3", 1, 16, 3_777_301),
        ("seed_linear", 1, 8, 517_440),
        ("seed_naive", 1, 8, 156_693),
        ("seed_pup", 1, 8, 57_621),
        ("seed_pup", 1, 16, 66_933),
    ],
)
def test_parameter_counts(name, layers, stride, expected):
    assert parameters(build(name, layers, stride)) == expected


@pytest.mark.parametrize(
    ("stride", "rates"), [(4, (12, 24, 36)), (8, (12, 24, 36)), (16, (6, 12, 18)), (32, (3, 6, 9))]
)
def test_deeplabs_rates_follow_the_stride(stride, rates):
    convolutions = [
        m for m in build("deeplabv3", stride=stride).modules() if isinstance(m, nn.Conv2d)
    ]
    assert tuple(m.dilation[0] for m in convolutions if m.dilation[0] > 1) == rates


def test_deeplab_on_a_resnet50_has_torchvisions_parameters():
    assert parameters(build("deeplabv3", stride=8, width=2048)) == 16_130_837


def test_fcn_has_two_convolutions_their_input_and_a_third():
    d, w = 384, 512
    expected = 9 * (d * w + w * w + (d + w) * w) + 3 * 2 * w + w * 21 + 21
    assert parameters(build("fcn")) == expected


@pytest.mark.parametrize("name", sorted(HEADS))
@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("size", [(224, 224), (320, 448)])
def test_logits_are_of_the_images_size(name, stride, size):
    layers = 4 if name == "setr_mla" else 1
    head = build(name, layers, stride, width=16, classes=5)
    with torch.no_grad():
        assert head(features(size, layers, stride, 16), size).shape == (2, 5, *size)


@pytest.mark.parametrize("name", sorted(HEADS))
def test_every_head_reads_several_layers(name):
    head = build(name, 4, 16, width=16, classes=5)
    with torch.no_grad():
        base = head(features((64, 96), 4, 16, 16), (64, 96))
        assert base.shape == (2, 5, 64, 96)
        for layer in range(4):
            changed = features((64, 96), 4, 16, 16)
            changed.maps[layer].neg_()
            assert not torch.allclose(head(changed, (64, 96)), base), layer


def test_maps_of_different_strides_meet_at_the_finest():
    backbone = resnet18(image_size=64, layers="last4").eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    for name in sorted(HEADS):
        head = filled(load(HEADS[name])(backbone.map_channels, backbone.map_strides, 7)).eval()
        with torch.no_grad():
            assert head(backbone(images), (64, 64)).shape == (2, 7, 64, 64)


def test_maps_are_joined_at_the_size_of_the_finest():
    coarse, fine = torch.randn(2, 3, 4, 6), torch.randn(2, 5, 8, 12)
    enlarged = F.interpolate(coarse, (8, 12), mode="bilinear", align_corners=False)
    joined = concatenated((coarse, fine))
    assert torch.equal(joined, torch.cat([enlarged, fine], 1))


def non_additivity(head: Head) -> float:
    """How far f(x) + f(y) - f(x + y) - f(0) is from zero, relative to f."""
    head = head.double()
    x, y = (features((64, 64), seed=seed) for seed in (1, 2))

    def f(*maps: Tensor) -> Tensor:
        summed = sum((each.double() for each in maps), torch.zeros_like(x.maps[0]).double())
        return head(Features(x.pooled, (summed,), x.prefix, x.strides), (64, 64))

    with torch.no_grad():
        gap = f(x.maps[0]) + f(y.maps[0]) - f(x.maps[0], y.maps[0]) - f()
        return float(gap.abs().max() / f(x.maps[0]).abs().max())


@pytest.mark.parametrize("name", sorted(set(HEADS) - {"setr_mla"}))
def test_which_heads_are_affine(name):
    gap = non_additivity(build(name))
    if name in ("linear", "seed_linear", "seed_pup"):
        assert gap < 1e-12
    else:
        assert gap > 1e-3


def test_seed_pup_is_one_linear_layer_of_low_rank_upsampled():
    head = build("seed_pup").double()
    convs = [module for module in head.modules() if isinstance(module, nn.Conv2d)]
    weight = torch.eye(384, dtype=torch.float64)
    bias = torch.zeros(384, dtype=torch.float64)
    for conv in convs:
        matrix = conv.weight[:, :, 0, 0]
        weight, bias = matrix @ weight, matrix @ bias + conv.bias
    assert torch.linalg.matrix_rank(weight) <= 21
    x = features((64, 96))
    expected = F.conv2d(x.maps[0].double(), weight[..., None, None], bias)
    for _ in range(4):
        expected = F.interpolate(expected, scale_factor=2, mode="bilinear", align_corners=False)
    given = Features(x.pooled, (x.maps[0].double(),), x.prefix, x.strides)
    torch.testing.assert_close(head(given, (64, 96)), expected, rtol=0, atol=1e-13)


def test_setr_naive_is_its_definition():
    head = build("setr_naive", width=8, classes=3).double()
    _, (conv, bn, _), classify = head.net
    x = features((32, 32), width=8).maps[0].double()
    tokens = x.movedim(1, -1)
    centred = tokens - tokens.mean(-1, keepdim=True)
    tokens = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    tokens = tokens @ conv.weight[:, :, 0, 0].T + conv.bias
    tokens = (tokens / (1 + bn.eps) ** 0.5).relu()
    logits = (tokens @ classify.weight[:, :, 0, 0].T + classify.bias).movedim(-1, 1)
    expected = F.interpolate(logits, size=(32, 32), mode="bilinear", align_corners=False)
    given = Features(torch.zeros(2, 8), (x,), (torch.zeros(2, 1, 8),), (16,))
    torch.testing.assert_close(head(given, (32, 32)), expected)


@pytest.mark.parametrize(("stride", "finer"), [(32, 8), (16, 8), (8, 4), (4, 2)])
def test_setr_pup_doubles_up_to_half_the_image_before_it_is_resized(stride, finer):
    head = build("setr_pup", stride=stride, width=8, classes=3)
    x = features((2 * stride, 3 * stride), stride=stride, width=8)
    assert head.native(x).shape == (2, 3, 2 * finer, 3 * finer)


@pytest.mark.parametrize(
    ("stride", "order"),
    [(32, "CUCUCUC"), (16, "CUCUCUC"), (8, "CCUCUC"), (4, "CCCUC"), (2, "CCCC")],
)
def test_setr_pup_leaves_out_the_first_doublings(stride, order):
    kinds = {nn.Sequential: "C", nn.Upsample: "U"}
    net = build("setr_pup", stride=stride, width=8, classes=3).net
    assert "".join(kinds.get(type(part), "") for part in net) == order


def test_setr_mla_wants_four_layers():
    with pytest.raises(ValueError, match=r"reads 4 layers, got 1: set --backbone.layers"):
        build("setr_mla", layers=1)


@pytest.mark.parametrize(("stride", "finer"), [(16, 4), (2, 2)])
def test_setr_mla_sums_from_above_and_never_beyond_the_image(stride, finer):
    head = load(HEADS["setr_mla"])((8,) * 4, (stride,) * 4, 3).eval()
    x = features((4 * stride, 6 * stride), 4, stride, 8)
    above, streams = torch.zeros(()), []
    for level in (3, 2, 1, 0):
        above = head.reduce[level](x.maps[level]) + above  # of all deeper ones
        stream = head.streams[level](head.smooth[level](above))
        size = (4 * finer, 6 * finer)
        streams.insert(0, F.interpolate(stream, size, mode="bilinear", align_corners=False))
    torch.testing.assert_close(head.native(x), head.classify(torch.cat(streams, 1)))


def test_heads_know_what_backbones_give():
    backbone = vit_tiny(image_size=32, patch_size=8, depth=3, embed_dim=24, layers="last2")
    assert backbone.map_channels == (24, 24)
    assert backbone.map_strides == (8, 8)


def test_coco_weights_are_of_torchvisions_deeplab(monkeypatch, tmp_path):
    from torchvision.models.segmentation import deeplabv3_resnet50

    from models.backbones.resnet import resnet50
    from models.backbones.weights import load_weights

    torch.manual_seed(1)
    whole = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21).eval()
    torch.save(whole.state_dict(), tmp_path / "coco.pth")
    backbone = resnet50(image_size=64, output_stride=8)
    report = load_weights(backbone, str(tmp_path / "coco.pth"))
    assert report is not None
    assert report.coverage == 1
    head = load(HEADS["deeplabv3"])(backbone.map_channels, backbone.map_strides, 21)
    assert "100%" in str(load_head(head, str(tmp_path / "coco.pth")))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        ours = head.eval()(backbone.eval()(images), (64, 64))
        theirs = whole((images - backbone.mean) / backbone.std)["out"]
    torch.testing.assert_close(ours, theirs)


def test_head_weights_of_other_heads_and_classes_are_refused(tmp_path):
    file = tmp_path / "head.pth"
    torch.save({f"head.{k}": v for k, v in build("setr_naive").state_dict().items()}, file)
    assert load_head(build("setr_naive"), str(file)) is not None
    with pytest.raises(ValueError, match=r"\(21, 256, 1, 1\) there and \(9, 256, 1, 1\) here"):
        load_head(build("setr_naive", classes=9), str(file))
    with pytest.raises(ValueError, match=r"another --segmentation\.head"):
        load_head(build("linear"), str(file))
    with pytest.raises(ValueError, match="deeplabv3 only"):
        load_head(build("linear"), "coco")
    with pytest.raises(FileNotFoundError):
        load_head(build("linear"), str(tmp_path / "nothing.pth"))


def _with_nan(head: nn.Module) -> nn.Module:
    with torch.no_grad():
        *_, last = head.parameters()
        last.view(-1)[-1] = torch.nan
    return head


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: build("setr_naive"), "number of classes"),
        (
            lambda: _with_nan(build("setr_naive", classes=9)),
            r"head\.pth is not loaded: 1 of 11 tensors are NaN or infinite in places \(first \w",
        ),
    ],
)
def test_a_failed_load_changes_nothing(tmp_path, other, said):
    head = build("setr_naive", classes=9)
    file = tmp_path / "head.pth"
    torch.save(other().state_dict(), file)
    before = {key: value.clone() for key, value in head.state_dict().items()}
    with pytest.raises(ValueError, match=said):
        load_head(head, str(file))
    assert all(torch.equal(before[key], value) for key, value in head.state_dict().items())


def test_segmenter_treats_all_classes_alike():
    head = build("segmenter_mask", classes=5)
    found = head(features((64, 64)), (64, 64))
    order = torch.tensor([3, 0, 4, 1, 2])
    head.classes.data = head.classes.data[:, order]
    torch.testing.assert_close(head(features((64, 64)), (64, 64)), found[:, order])
    # A LayerNorm over the classes: every pixel's logits have mean 0 and variance 1.
    decoded = head.decode(features((64, 64)).maps[0])
    torch.testing.assert_close(decoded.mean(1), torch.zeros(2, 4, 4), atol=1e-5, rtol=0)
    assert decoded.var(1, correction=0).max() <= 1


def test_segmenter_compares_each_patch_with_each_class():
    head = build("segmenter_mask", width=16, classes=3)
    x = features((32, 48), width=16).maps[0][:1]  # a grid of 2 x 3
    tokens = torch.cat([head.project(x[0].flatten(1).T), head.classes[0]])
    tokens = head.norm(head.blocks(tokens[None]))[0]
    cosines = torch.stack(
        [
            F.cosine_similarity(
                head.patch_projection(tokens[patch]), head.class_projection(tokens[6:]), dim=-1
            )
            for patch in range(6)
        ]
    )
    expected = head.mask_norm(cosines).T.view(1, 3, 2, 3)
    torch.testing.assert_close(head.decode(x), expected)


def test_segmenter_heads_divide_any_width():
    assert (
        build("segmenter_mask", width=100)(features((32, 32), width=100), (32, 32)).shape[1] == 21
    )


def test_segformer_reads_every_level_at_its_resolution():
    head = load(HEADS["segformer_mlp"])((8, 16), (4, 8), 3).eval()
    fine, coarse = torch.randn(1, 8, 16, 16), torch.randn(1, 16, 8, 8)
    prefix = (torch.zeros(1, 0, 8), torch.zeros(1, 0, 16))
    both = Features(torch.zeros(1, 16), (fine, coarse), prefix, (4, 8))
    logits = head(both, (64, 64))
    fused = head.fuse(
        torch.cat(
            [
                F.conv2d(fine, head.project[0].weight, head.project[0].bias),
                F.interpolate(
                    F.conv2d(coarse, head.project[1].weight, head.project[1].bias),
                    size=(16, 16),
                    mode="bilinear",
                ),
            ],
            1,
        )
    )
    expected = F.interpolate(head.classify(fused), size=(64, 64), mode="bilinear")
    torch.testing.assert_close(logits, expected)
