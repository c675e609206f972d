"""Weights of Swin V2 in the names of its own code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.backbones.base import Backbone
from models.backbones.timm_any import build
from models.backbones.weights import load_state
from utils.weight_files import tensors_in


def tiny(image_size: int = 128, **settings: Any) -> Backbone:
    sizes = {"embed_dim": 12, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 3, 4)} | settings
    backbone = build("swinv2_tiny_window8_256", image_size=image_size, layers="last4", **sizes)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return backbone.eval()


def written(backbone: Backbone) -> dict[str, Tensor]:
    """As Microsoft does: patches merged where a stage ends, and what follows from the sizes."""
    state = {}
    for key, value in {**backbone.net.state_dict(), **dict(backbone.net.named_buffers())}.items():
        stage, merges, rest = key.partition(".downsample.")
        if merges:
            key = f"layers.{int(stage.removeprefix('layers.')) - 1}{merges}{rest}"
        if not key.endswith("k_bias"):
            state[key] = value
    state |= {
        "layers.1.blocks.1.attn_mask": torch.zeros(4, 64, 64),
        "head.weight": torch.zeros(5, 96),
        "head.bias": torch.zeros(5),
    }
    return tensors_in({"model": state}, "file")


def test_weights_in_the_names_of_swins_own_code():
    torch.manual_seed(0)
    source, target = tiny(), tiny()
    file = written(source)
    assert {
        "model.patch_embed.norm.weight",
        "model.layers.0.downsample.reduction.weight",
        "model.layers.1.blocks.1.attn.relative_coords_table",
        "model.layers.1.blocks.1.attn.relative_position_index",
        "model.layers.1.blocks.1.attn.logit_scale",
        "model.layers.1.blocks.1.attn.cpb_mlp.0.weight",
        "model.layers.1.blocks.1.attn.q_bias",
    } <= file.keys()
    for state in (file, {k: v.half() if v.is_floating_point() else v for k, v in file.items()}):
        report = load_state(target, state, "file")
        assert report.coverage == 1
        assert not report.missing
        assert not report.folded
    load_state(target, file, "file")
    images = torch.rand(2, 3, 128, 128)
    ours, theirs = target(images), source(images)
    assert torch.equal(ours.pooled, theirs.pooled)
    assert all(map(torch.equal, ours.maps, theirs.maps))


def test_positions_of_another_pretraining_are_refused():
    """Names and shapes of all weights are the same, but not what the network computes of them."""
    settings = {"pretrained_window_sizes": (6, 6, 6, 3)}
    source, target, twin = tiny(**settings), tiny(), tiny(**settings)
    said = (
        r"It has .* positions of another pretraining, .*\(layers\.0\.blocks\.0\.attn\.relative_co"
    )
    with pytest.raises(ValueError, match=said):
        load_state(target, written(source), "file")
    load_state(twin, written(source), "file")
    target.net.load_state_dict(source.net.state_dict())
    images = torch.rand(2, 3, 128, 128)
    expected = source(images).pooled
    assert torch.equal(twin(images).pooled, expected)
    assert not torch.allclose(target(images).pooled, expected, atol=1e-3)


def test_windows_of_another_size_are_said():
    report = load_state(tiny(64), written(tiny(128)), "file")
    assert report.coverage == 1
    assert report.folded == ("relative positions of 2 blocks computed for windows of another size",)
