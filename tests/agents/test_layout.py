"""Weights lie in memory as the device reads them; no number knows."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from agents.backbone import choose_attention, lay_out
from models.attention import AttentionRequest
from models.backbones.botnet import botnet50
from models.backbones.resnet import resnet18
from models.backbones.vit import vit_tiny

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def ampere(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))


MAKES = {
    "resnet": lambda: resnet18(image_size=64, layers="last4"),
    "botnet": lambda: botnet50(image_size=64),
    "vit": lambda: vit_tiny(image_size=64, patch_size=16, depth=2, embed_dim=24),
}


def convolutions(network: nn.Module) -> list[nn.Parameter]:
    """Weights of more than one pixel, whose layouts differ."""
    found = (m.weight for m in network.modules() if isinstance(m, nn.Conv2d))
    return [weight for weight in found if weight.shape[-1] > 1 and weight.shape[1] > 1]


@pytest.mark.parametrize("name", MAKES)
def test_features_and_gradients_are_those_of_the_usual_layout(name):
    torch.manual_seed(0)
    usual = MAKES[name]().double().eval()
    laid_out = deepcopy(usual)
    lay_out(nn.ModuleDict({"student": laid_out, "teacher": deepcopy(laid_out)}), GPU)
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    found, expected = laid_out(images), usual(images)
    torch.testing.assert_close(found.pooled, expected.pooled)
    torch.testing.assert_close(found.maps, expected.maps)
    for features in (found, expected):
        features.pooled.square().sum().backward()
    for one, other in zip(laid_out.parameters(), usual.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("name", MAKES)
def test_convolutional_networks_are_channels_last_on_a_gpu_alone(name):
    network = MAKES[name]()
    lay_out(network, torch.device("cpu"))
    assert all(weight.is_contiguous() for weight in convolutions(network))
    lay_out(network, GPU)
    last = all(w.is_contiguous(memory_format=torch.channels_last) for w in convolutions(network))
    assert last is (name != "vit")
    copied = deepcopy(network)  # as a teacher is
    assert [w.stride() for w in convolutions(copied)] == [w.stride() for w in convolutions(network)]


def test_a_card_without_tensor_cores_keeps_the_usual_layout(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 0))
    network = MAKES["resnet"]()
    lay_out(network, GPU)
    assert all(weight.is_contiguous() for weight in convolutions(network))


def test_attention_of_a_network_that_is_laid_out_is_the_same():
    torch.manual_seed(0)
    usual = botnet50(image_size=64).double().eval()
    laid_out = deepcopy(usual)
    lay_out(laid_out, GPU)
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    request = AttentionRequest((0, -1), "all")
    found, expected = (network(images, request).attention for network in (laid_out, usual))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.patch_maps(), other.patch_maps())


FEW, MANY = {"image_size": 64, "patch_size": 8}, {"image_size": 64, "patch_size": 2}


def fused(network: nn.Module) -> list[bool]:
    """Whether each attention of it leaves its product to torch's kernel."""
    return [m.fused_attn for m in network.modules() if hasattr(m, "fused_attn")]


@pytest.mark.parametrize(
    ("tokens", "precision", "device", "kernel"),
    [
        (FEW, "bf16-mixed", "cpu", False),
        (MANY, "bf16-mixed", "cpu", True),
        (FEW, "32-true", "cpu", True),
        (FEW, "bf16-mixed", "cuda", True),
    ],
)
def test_attention_is_fused_unless_plain_steps_are_quicker(tokens, precision, device, kernel):
    network = vit_tiny(depth=2, embed_dim=24, **tokens)
    agent = nn.ModuleDict({"student": network, "teacher": deepcopy(network)})
    choose_attention(agent, 64, precision, torch.device(device))
    assert fused(agent) == [kernel] * 4


def test_attention_in_plain_steps_is_the_same():
    torch.manual_seed(0)
    usual = vit_tiny(depth=2, embed_dim=24, **FEW).double()
    plain = deepcopy(usual)
    choose_attention(plain, 64, "bf16-mixed", torch.device("cpu"))
    assert fused(plain) != fused(usual)
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    request = AttentionRequest((0, -1), "all")
    found, expected = plain(images, request), usual(images, request)
    torch.testing.assert_close(found.maps, expected.maps)
    for one, other in zip(found.attention, expected.attention, strict=True):
        torch.testing.assert_close(one.patch_maps(), other.patch_maps())
    for features in (found, expected):
        features.pooled.square().sum().backward()
    for one, other in zip(plain.parameters(), usual.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
