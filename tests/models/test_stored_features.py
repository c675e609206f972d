"""What a backbone says survives being kept, to half precision."""

import pytest
import torch

from models.attention import AttentionRequest
from models.backbones.base import Backbone
from models.backbones.botnet import botnet50
from models.backbones.resnet import resnet18
from models.backbones.stored import pack, unpack
from models.backbones.swin import build as build_swin
from models.backbones.vit import vit_tiny


def backbone(name: str) -> Backbone:
    torch.manual_seed(0)
    if name == "vit":
        sizes = {"image_size": 64, "patch_size": 16, "depth": 3, "embed_dim": 24, "num_heads": 3}
        return vit_tiny(**sizes, layers="1,2").eval()
    if name == "swin":
        return build_swin("t", 8, (1, 1, 2, 1), (1, 2, 2, 4), image_size=64, window_size=2).eval()
    return {"botnet": botnet50, "resnet": resnet18}[name](image_size=64).eval()


@pytest.mark.parametrize(
    ("name", "request_of"),
    [
        ("vit", AttentionRequest((0, 2), "factors")),
        ("vit", AttentionRequest((1,), "cls")),
        ("vit", None),
        ("swin", AttentionRequest((2,), "mean")),
        ("botnet", AttentionRequest((-1,), "factors")),
        ("resnet", None),
    ],
)
def test_features_are_put_together_again(name, request_of):
    net = backbone(name)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 64, 96), dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        given = net(images, request_of)
    kept = pack(given)
    assert len(kept) == 3
    assert all(v.dtype in (torch.float16, torch.int64) for each in kept for v in each.values())
    found = unpack([kept[2], kept[0]], net)
    order = [2, 0]
    close = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(found.pooled, given.pooled[order], **close)
    assert found.strides == given.strides
    for new, old in zip(found.maps + found.prefix, given.maps + given.prefix, strict=True):
        torch.testing.assert_close(new, old[order], **close)
    assert (found.attention is None) == (given.attention is None)
    assert (found.factors is None) == (given.factors is None)
    for new, old in zip(found.attention or (), given.attention or (), strict=True):
        assert (new.block, new.grid, new.num_prefix) == (old.block, old.grid, old.num_prefix)
        torch.testing.assert_close(new.weights, old.weights[order], **close)
    for new, old in zip(found.factors or (), given.factors or (), strict=True):
        torch.testing.assert_close(new.rows("all").weights, old.rows("all").weights[order], **close)
        torch.testing.assert_close(new.patch_keys(), old.patch_keys()[order], **close)


def test_what_half_precision_cannot_hold_is_refused():
    net = backbone("vit")
    given = net(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    given.pooled[0, 0] = 1e6
    with pytest.raises(ValueError, match="feature_cache off"):
        pack(given)
