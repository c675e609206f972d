"""Chunked = whole, the idea this project stands on."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models.backbones.base import Backbone
from models.backbones.resnet import resnet18
from models.backbones.vit import vit_tiny
from models.heads.projector import projector
from models.losses.barlow_twins import barlow_twins_loss, cross_correlation
from models.memory.chunking import forward_in_chunks
from utils.chunks import chunk_sizes

CPU = torch.device("cpu")
SIZES = [5, 4, 4]  # 13 images in chunks of 5


def vit(**settings: float) -> Backbone:
    return vit_tiny(image_size=16, patch_size=8, depth=2, embed_dim=24, num_heads=3, **settings)


def vit_with_dropout() -> Backbone:
    from models.backbones.vit_pytorch import vit_pytorch  # the tests on a GPU do without it

    return vit_pytorch(image_size=16, patch_size=8, depth=2, embed_dim=24, num_heads=3, dropout=0.3)


def gradients(
    make: Callable[[], Backbone],
    embed: Callable[[Backbone, Tensor], Tensor],
    autocast: bool = False,
    scale: float = 1.0,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients and buffers after one backward pass of the whole method."""
    torch.manual_seed(0)
    backbone = make().double()
    head = projector(backbone.embed_dim, 10, 3).double()
    model = nn.ModuleDict({"backbone": backbone, "head": head})
    if autocast:
        model.float()
    images = torch.randint(0, 256, (2, sum(SIZES), 3, 16, 16), dtype=torch.uint8)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        z1, z2 = (head(embed(backbone, view)) for view in images)
        loss = barlow_twins_loss(cross_correlation(z1, z2), 0.0051) * scale
    loss.backward()
    found = {name: p.grad / scale for name, p in model.named_parameters() if p.grad is not None}
    return found, {name: b.clone() for name, b in model.named_buffers()}


def whole(backbone: Backbone, images: Tensor) -> Tensor:
    return backbone(images).pooled


def loop(backbone: Backbone, images: Tensor) -> Tensor:
    return torch.cat([backbone(chunk).pooled for chunk in images.split(SIZES)])


def chunked(backbone: Backbone, images: Tensor) -> Tensor:
    return forward_in_chunks(backbone, lambda x: backbone(x).pooled, images.split(SIZES), CPU)


def assert_close(
    first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 1e-10
) -> None:
    assert first.keys() == second.keys()
    # A bias before BatchNorm has gradient zero but for rounding: never less than this scale.
    smallest = 1e-6 * max(float(value.abs().max()) for value in second.values())
    for name in first:
        scale = second[name].abs().max().clamp_min(smallest)
        assert (first[name] - second[name]).abs().max() / scale <= tolerance, name


def test_layer_norm_backbone_has_the_gradient_of_the_whole_batch():
    expected, _ = gradients(vit, whole)
    assert_close(gradients(vit, chunked)[0], expected)


def test_the_test_can_fail_accumulation_is_something_else():
    expected, _ = gradients(vit, whole)

    def accumulated(backbone: Backbone, images: Tensor) -> Tensor:
        return backbone(images[: SIZES[0]]).pooled

    with pytest.raises(AssertionError):
        assert_close(gradients(vit, accumulated)[0], expected, tolerance=0.1)


def test_scaled_loss_as_under_a_grad_scaler():
    expected, _ = gradients(vit, whole)
    assert_close(gradients(vit, chunked, scale=65536.0)[0], expected)


@pytest.mark.parametrize("make", [lambda: vit(drop_path=0.4), vit_with_dropout])
def test_random_backbones_have_the_gradient_of_the_chunk_loop(make):
    expected, _ = gradients(make, loop)
    assert_close(gradients(make, chunked)[0], expected)


def resnet() -> Backbone:
    return resnet18(image_size=16, stem="cifar")


def test_batch_norm_backbone_has_gradient_and_statistics_of_the_chunk_loop():
    expected, statistics = gradients(resnet, loop)
    found, buffers = gradients(resnet, chunked)
    assert_close(found, expected)
    counts = {name: buffer for name, buffer in buffers.items() if "num_batches" in name}
    assert counts
    for name, buffer in buffers.items():
        assert torch.equal(buffer, statistics[name]), name  # updated once, not twice


def test_mixed_precision_equals_the_loop_in_mixed_precision():
    expected, _ = gradients(vit, loop, autocast=True)
    found, _ = gradients(vit, chunked, autocast=True)
    assert_close(found, expected, tolerance=1e-6)


def saved_for_backward(embed: Callable[[Backbone, Tensor], Tensor], images: Tensor) -> int:
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        embed(vit().double(), images)
    return sum(kept)


def test_nothing_but_the_uint8_images_is_kept_for_backward():
    images = torch.randint(0, 256, (sum(SIZES), 3, 16, 16), dtype=torch.uint8)
    assert saved_for_backward(chunked, images) == images.numel()
    assert saved_for_backward(whole, images) > 5 * images.numel()


@pytest.mark.parametrize(
    ("batch", "chunk", "sizes"),
    [
        (8, None, [8]),
        (8, 8, [8]),
        (256, 100, [86, 85, 85]),
        (65, 32, [22, 22, 21]),
        (5, 4, [3, 2]),
        (3, 2, [3]),
        (7, 2, [3, 2, 2]),
        (2, 2, [2]),
    ],
)
def test_chunks_are_even_and_never_single_images(batch, chunk, sizes):
    assert chunk_sizes(batch, chunk) == sizes


@pytest.mark.parametrize(("batch", "chunk"), [(1, None), (8, 1)])
def test_single_images_are_refused(batch, chunk):
    with pytest.raises(ValueError, match="at least 2"):
        chunk_sizes(batch, chunk)
