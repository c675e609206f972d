"""A request for attention leaves the pass as it is: fused, compiled, recomputed, untouched."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import AttentionRequest
from models.backbones.botnet import botnet50
from models.backbones.swin import build
from models.backbones.vit import vit_tiny
from models.head_information import HeadInformation
from models.memory.chunking import forward_in_chunks

Make = Callable[..., Any]
LAST_MODULE = {"vit": "norm", "swin": "norm", "botnet": "layer4.2.bn3"}


def vit(**settings: Any) -> Any:
    return vit_tiny(image_size=64, patch_size=16, depth=3, embed_dim=24, num_heads=3, **settings)


def swin(**settings: Any) -> Any:
    sizes = {"image_size": 64, "window_size": 4}
    return build("swin_tiny", 12, (2, 2, 2, 2), (1, 2, 3, 4), **sizes | settings)


def botnet() -> Any:
    return botnet50(image_size=64)


def made(make: Make, **settings: Any) -> Any:
    torch.manual_seed(0)
    return make(**settings).eval()


def images(count: int = 3, height: int = 64, width: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = (count, 3, height, width)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)


def num_hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def request(backbone: Any, num_images: int | None = None) -> AttentionRequest:
    return AttentionRequest(tuple(range(backbone.depth)), "mean", num_images)


@pytest.mark.parametrize("layers", ["last", "0,2"])
@pytest.mark.parametrize("make", [vit, swin])
def test_features_are_timms_own(make, layers):
    backbone = made(make, layers=layers)
    x = images(2, 96, 160)
    expected = backbone.net.forward_features(backbone.normalise(x))
    found = backbone(x)
    pooled = expected[:, 0] if make is vit else expected.mean((1, 2))
    assert torch.equal(found.pooled, pooled)
    if layers == "last":
        patches = expected[:, 1:].unflatten(1, (6, 10)) if make is vit else expected
        assert torch.equal(found.maps[0], patches.movedim(-1, 1))
    asked = backbone(x, request(backbone))
    assert torch.equal(asked.pooled, found.pooled)
    assert all(torch.equal(a, b) for a, b in zip(asked.maps, found.maps, strict=True))


@pytest.mark.parametrize("make", [vit, swin])
def test_a_request_stays_fused_and_computes_for_its_images_only(make, monkeypatch):
    backbone = made(make)
    fused, projected = [], []
    inner = F.scaled_dot_product_attention

    def counted(*inputs: Tensor, **options: Any) -> Tensor:
        found = inner(*inputs, **options)  # what is only asked for ends here
        fused.append(inputs[0].shape)
        return found

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    for attn in backbone.attention_modules():
        attn.fused_attn = True  # by default timm does not fuse a Swin
        attn.qkv.register_forward_pre_hook(lambda _, inputs: projected.append(len(inputs[0])))
    backbone(images(), request(backbone, num_images=1))
    assert len(fused) == backbone.depth
    # Every block projects twice: what is asked for, then the batch of three.
    assert projected[1::2] == [3 * count for count in projected[::2]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [vit, swin])
def test_rows_are_the_unfused_softmax_under_autocast(make, dtype):
    backbone = made(make)
    asked = AttentionRequest((0,), "all")
    with torch.autocast("cpu", dtype):
        (found,) = backbone(images(), asked).attention
    kept = []
    attn = backbone.attention_modules()[0]
    attn.fused_attn = False
    hook = attn.attn_drop.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    with torch.autocast("cpu", dtype):
        backbone(images())
    hook.remove()
    assert found.weights.dtype == torch.float32
    expected = kept[0].float()  # Swin: (B * 16 windows, heads, 16, 16); the first block's row 0
    rows = found.weights[:, :, 0] if make is vit else found.weights[:, :, 0].unflatten(-1, (16, 16))
    if make is vit:
        torch.testing.assert_close(rows, expected[:, :, 0], atol=1e-2, rtol=0)
    else:
        inside = rows[:, :, :4, :4].flatten(2)
        torch.testing.assert_close(inside, expected[::16, :, 0], atol=1e-2, rtol=0)


@pytest.mark.parametrize("make", [vit, swin, botnet])
def test_no_hooks_remain(make, monkeypatch):
    backbone = made(make)
    backbone(images(), request(backbone))
    backbone.layer_maps(images(1))
    assert num_hooks(backbone) == 0
    with pytest.raises(ValueError, match="use 0 …"):
        backbone(images(), AttentionRequest((backbone.depth,), "mean"))
    assert num_hooks(backbone) == 0

    def fails(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(backbone.net.get_submodule(LAST_MODULE[make.__name__]), "forward", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        backbone(images(), request(backbone))
    assert num_hooks(backbone) == 0


@pytest.mark.parametrize("make", [vit, swin, botnet])
def test_a_compiled_pass_answers_after_one_without_request(make):
    backbone = made(make)
    plain, asked = backbone(images()), backbone(images(), request(backbone))
    torch.compiler.reset()
    compiled = torch.compile(backbone, backend="eager")
    for _ in range(2):
        found = compiled(images())
        assert found.attention is None
        torch.testing.assert_close(found.pooled, plain.pooled)
        answers = compiled(images(), request(backbone)).attention
        assert len(answers) == backbone.depth
        for answer, expected in zip(answers, asked.attention, strict=True):
            torch.testing.assert_close(answer.weights, expected.weights)
    assert num_hooks(backbone) == 0


def gradients(backbone: Any, pooled: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    backbone.zero_grad()
    torch.manual_seed(1)  # of drop path
    found = pooled(x)
    # Deep in the graph and far from linear: a wrong recomputation would show.
    (found.square().sum() + found[:, -1].exp().sum()).backward()
    return [p.grad.clone() for p in backbone.parameters() if p.grad is not None]


@pytest.mark.parametrize("make", [vit, swin])
def test_a_checkpointed_chunk_with_a_request_has_the_gradients_of_the_plain_pass(make):
    backbone = made(make, drop_path=0.3).double().train()
    blocks = [0, -1] if make is vit else [-2, -1]  # heads of a Swin's first stage here: one
    told = HeadInformation(backbone, 1.0, blocks)
    x = images(4)

    def chunked(x: Tensor, size: int = 4) -> Tensor:
        def pooled(chunk: Tensor) -> Tensor:
            return told.pooled(backbone, chunk)

        return forward_in_chunks(backbone, pooled, x.split(size), torch.device("cpu"))

    plain = gradients(backbone, lambda x: told.pooled(backbone, x), x)
    assert all(map(torch.equal, gradients(backbone, chunked, x), plain))
    backbone.eval()  # drop path draws anew for every chunk
    plain = gradients(backbone, lambda x: told.pooled(backbone, x), x)
    for found, expected in zip(gradients(backbone, lambda x: chunked(x, 2), x), plain, strict=True):
        torch.testing.assert_close(found, expected)
    assert num_hooks(backbone) == 0
