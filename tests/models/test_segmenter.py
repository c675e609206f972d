"""The network of a segmentation: batches, padding, cached features and windows change nothing."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.fusions.attention_fusion import AttentionFusion, attention_request
from models.inference import WHOLE, Inference
from models.segmenter import Segmenter, labels_of, pad_to_multiple
from tests.models.test_fusions import CLASSES, fusion, head, images, vit
from utils.palette import MEAN_COLOUR

SIZES = [(32, 40), (21, 30), (32, 40), (40, 17), (21, 30)]


def segmenter(control: str = "none", **settings: Any) -> Segmenter:
    """Fusion 2 around a SETR head on a ViT with patches of 8 pixels, float64, in eval mode."""
    backbone = vit()
    request = attention_request(backbone, (-2, -1), all_pairs=True)
    fused = AttentionFusion({"fusion2": fusion("fusion2")}, request, control)  # type: ignore[arg-type]
    return Segmenter(backbone, head(), fused, **settings).double().eval()


def mixed() -> list[Tensor]:
    return [images(*size, count=1, seed=seed)[0] for seed, size in enumerate(SIZES)]


# --- images of any size ---------------------------------------------------------------------------


def test_logits_are_those_of_the_padded_image_cut_back():
    network, given = segmenter(), images(21, 30)
    with torch.no_grad():
        found, padded = network(given), network(pad_to_multiple(given, 8))
    assert found.shape == (2, CLASSES, 21, 30)
    assert padded.shape == (2, CLASSES, 24, 32)
    assert torch.equal(found, padded[..., :21, :30])


def test_a_stride_gives_the_logits_of_the_smaller_image():
    network, given = segmenter(), images(20, 28)
    with torch.no_grad():
        features = network.encode(given)
        native = network.fusion(network.head, features)
        found = network.decode(features, (20, 28), stride=4)
    expected = torch.nn.functional.interpolate(native, (6, 8), mode="bilinear")
    torch.testing.assert_close(found, expected[..., :5, :7])


def test_logits_at_a_stride_lie_over_the_pixels_they_stand_for_whatever_the_padding():
    network = Segmenter(vit(patch_size=7), head(), AttentionFusion())
    ramp = torch.arange(5, dtype=torch.float64).expand(1, 1, 5, 5)  # 32 px, padded to 35
    found = network.of_pixels(ramp, (32, 32), stride=4)
    expected = ((4 * torch.arange(8, dtype=torch.float64) + 2) / 7 - 0.5).clamp(min=0)
    torch.testing.assert_close(found[0, 0], expected.expand(8, 8))


def test_logits_of_a_half_precision_pass_are_upsampled_in_float32():
    network, given = Segmenter(vit(), head(), AttentionFusion()).float(), images(40, 40)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = network.encode(given)
        native = network.fusion(network.head, features)
        found = network.decode(features, (40, 40))
    assert native.dtype == torch.bfloat16
    expected = torch.nn.functional.interpolate(native.float(), (40, 40), mode="bilinear")
    assert torch.equal(found, expected)


def test_the_largest_stride_decides_the_padding():
    assert segmenter().multiple == 8
    coarse = vit()
    coarse.map_strides = (8, 32)
    assert Segmenter(coarse, head(), AttentionFusion()).multiple == 32


def test_padding_is_the_mean_colour_at_the_right_and_bottom():
    given = images(30, 33)
    padded = pad_to_multiple(given, 16)
    assert padded.shape == (2, 3, 32, 48)
    assert torch.equal(padded[:, :, :30, :33], given)
    assert padded[0, :, 31, 40].tolist() == list(MEAN_COLOUR)
    assert pad_to_multiple(padded, 16) is padded


# --- several images -------------------------------------------------------------------------------


@pytest.mark.parametrize("control", ["none", "uniform"])
@pytest.mark.parametrize("inference", [WHOLE, Inference(window=16, flip=True)])
def test_images_of_mixed_sizes_are_as_one_by_one(control, inference):
    network, given = segmenter(control), mixed()
    targets = [(2 * height, width + 3) for height, width in SIZES]
    with torch.no_grad():
        together = list(network.logits_at(given, targets, inference=inference))
        for image, size, found in zip(given, targets, together, strict=True):
            (alone,) = network.logits_at([image], [size], inference=inference)
            plain = inference(network, image[None])
            expected = torch.nn.functional.interpolate(plain.float(), size, mode="bilinear")[0]
            assert found.shape == (CLASSES, *size)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(alone, expected, rtol=1e-5, atol=1e-6)


class OfPixels(TorchDispatchMode):
    """Sees of how many images logits of every pixel are made at once."""

    images = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **kwargs or {})
        if isinstance(found, Tensor) and found.ndim == 4:
            count, channels, height, _ = found.shape
            if channels == CLASSES and height >= 60:
                self.images = max(self.images, count)
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_every_pixel_are_of_one_image_at_a_time_and_the_same(dtype):
    network, batch, size = segmenter().to(dtype), images(60, 76, count=6), (120, 150)
    with torch.no_grad():
        together = torch.nn.functional.interpolate(network(batch).float(), size, mode="bilinear")
        with OfPixels() as seen:
            found = network.logits_at(list(batch), 6 * [size])
            assert all(map(torch.equal, found, together))
    assert seen.images == 1


def test_shuffled_attention_is_that_of_the_next_image_whatever_its_size():
    shuffled, given = segmenter("shuffled"), mixed()
    with torch.no_grad():
        found = list(shuffled.logits_at(given, SIZES))
        for (image, following), logits in zip(pairwise(given), found, strict=False):
            size = (image.shape[-2], image.shape[-1])
            pair = list(shuffled.logits_at([image, following], [size, size]))
            torch.testing.assert_close(logits, pair[0], rtol=1e-5, atol=1e-6)
        plain = list(segmenter().logits_at(given, SIZES))
    assert all(not torch.allclose(a, b) for a, b in zip(found, plain, strict=True))


def test_labels_are_the_most_likely():
    logits = torch.randn(2, 7, 3, 4, generator=torch.Generator().manual_seed(0))
    labels = labels_of(logits)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), logits.argmax(1))
    assert torch.equal(labels_of(logits[1]), labels[1])


# --- cached features ------------------------------------------------------------------------------


def test_cached_features_give_the_logits_of_computed_ones():
    network, given = segmenter(), mixed()
    cached = [network.stored_features(image[None])[0] for image in given]
    with torch.no_grad():
        computed = list(network.logits_at(given, SIZES))
        # The images are not looked at: other ones of the same sizes do.
        read = list(network.logits_at([torch.zeros_like(x) for x in given], SIZES, cached))
    for one, other in zip(read, computed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)
    assert max(float((a - b).abs().max()) for a, b in zip(read, computed, strict=True)) > 0


def test_what_is_kept_is_what_is_encoded():
    network, given = segmenter(), images(21, 30)
    with torch.no_grad():
        computed = network.encode(given)
    read = network.encode(given, network.stored_features(given))
    assert read.pooled.dtype == torch.float64
    assert torch.equal(read.maps[0], computed.maps[0].half().double())
    assert torch.equal(read.factors[1].q, computed.factors[1].q.half().double())


# --- frozen ---------------------------------------------------------------------------------------


def test_a_frozen_backbone_is_encoded_without_a_graph():
    network = segmenter()
    assert network.encode(images()).maps[0].requires_grad
    network.backbone.freeze()
    network.train()
    features = network.encode(images())
    assert not features.maps[0].requires_grad
    assert not features.factors[0].q.requires_grad
    assert torch.is_grad_enabled()
    network.decode(features, (32, 32)).sum().backward()
    assert all(parameter.grad is None for parameter in network.backbone.parameters())
    assert network.head.net[0].weight.grad.abs().max() > 0
    # Figures of receptive fields go through the frozen backbone to its input.
    given = torch.rand(1, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    network.backbone(given).maps[0].sum().backward()
    assert given.grad.abs().max() > 0


def test_a_backbone_with_an_unfrozen_stage_has_a_graph():
    network = segmenter()
    network.backbone.freeze(unfreeze_last=1)
    network.train()
    network(images()).sum().backward()
    trained = {n for n, p in network.backbone.named_parameters() if p.grad is not None}
    assert trained
    assert all(name.startswith(("net.blocks.2.", "net.norm.")) for name in trained)


# --- for others -----------------------------------------------------------------------------------


def test_the_state_dict_has_the_parts_by_name():
    state = segmenter().state_dict()
    assert {key.partition(".")[0] for key in state} == {"backbone", "head", "fusion"}


def test_it_can_be_exported():
    network, given = segmenter(), images(24, 30)
    with torch.no_grad():
        program = torch.export.export(network, (given,), strict=False)
        torch.testing.assert_close(program.module()(given), network(given))
