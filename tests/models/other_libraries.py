"""Weights as other libraries write them, from timm's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

State = dict[str, Any]

_TRANSFORMERS = {
    r"^(cls_token|mask_token)": r"embeddings.\1",
    r"^reg_token": "embeddings.register_tokens",
    r"^pos_embed": "embeddings.position_embeddings",
    r"^patch_embed\.proj": "embeddings.patch_embeddings.projection",
    r"^blocks": "encoder.layer",
    r"^norm": "layernorm",
    r"attn\.proj": "attention.output.dense",
    r"attn\.([qkv])\.": r"attention.attention.\1.",
    r"attention\.q\.": "attention.query.",
    r"attention\.k\.": "attention.key.",
    r"attention\.v\.": "attention.value.",
    r"ls(\d)\.gamma": r"layer_scale\1.lambda1",
}
_OF_ITS_VIT = {
    r"mlp\.fc1": "intermediate.dense",
    r"mlp\.fc2": "output.dense",
    r"\.norm1": ".layernorm_before",
    r"\.norm2": ".layernorm_after",
}
_OF_ITS_DINOV3 = {
    r"^(cls_token|mask_token)": r"embeddings.\1",
    r"^reg_token": "embeddings.register_tokens",
    r"^patch_embed\.proj": "embeddings.patch_embeddings",
    r"^blocks": "layer",
    r"attn\.proj": "attention.o_proj",
    r"attn\.([qkv])\.": r"attention.\1_proj.",
    r"mlp\.fc1": "mlp.up_proj",
    r"mlp\.fc2": "mlp.down_proj",
    r"gamma_(\d)": r"layer_scale\1.lambda1",
}
# As its version 5 has them in memory, whatever it saves.
_OF_VERSION_5 = {
    r"encoder\.layer\.": "layers.",
    r"attention\.output\.dense": "attention.o_proj",
    r"attention\.attention\.([qkv])\w+": r"attention.\1_proj",
    r"intermediate\.dense": "mlp.fc1",
    r"output\.dense": "mlp.fc2",
}
_MMPRETRAIN = {
    r"^patch_embed\.proj": "patch_embed.projection",
    r"^norm": "ln1",
    r"^blocks": "layers",
    r"\.norm(\d)": r".ln\1",
    r"attn\.qkv\.": "attn.attn.in_proj_",
    r"attn\.proj": "attn.attn.out_proj",
    r"mlp\.fc1": "ffn.layers.0.0",
    r"mlp\.fc2": "ffn.layers.1",
}


_CONVNEXT = {
    r"^stem": "downsample_layers.0",
    r"^stages\.(\d)\.downsample": r"downsample_layers.\1",
    r"\.blocks\.": ".",
    r"conv_dw": "dwconv",
    r"mlp\.fc(\d)": r"pwconv\1",
    r"mlp\.grn\.weight": "grn.gamma",
    r"mlp\.grn\.bias": "grn.beta",
    r"head\.norm": "norm",
}


def official_convnext(state: State) -> State:
    """Writes ConvNeXt's own file, with its classifier."""
    named = _named(state, _CONVNEXT)
    named = {key: t.view(1, 1, 1, -1) if ".grn." in key else t for key, t in named.items()}
    return {"model": named | {"head.weight": torch.zeros(3, 8), "head.bias": torch.zeros(3)}}


def transformers_vit(state: State) -> State:
    """Writes Hugging Face's `ViTModel` within another model, with its pooler."""
    named = _named(_apart(state), _TRANSFORMERS | _OF_ITS_VIT)
    return {f"vit.{key}": value for key, value in named.items()} | {
        "vit.pooler.dense.weight": torch.zeros(3, 3)
    }


def transformers_dinov2(state: State) -> State:
    """Writes Hugging Face's `Dinov2Model`."""
    return _named(_apart(state), _TRANSFORMERS) | {"embeddings.mask_token": torch.zeros(1, 48)}


def transformers_dinov3(state: State) -> State:
    """Writes Hugging Face's `DINOv3ViTModel`."""
    return _named(_apart(state), _OF_ITS_DINOV3)


def transformers_5_vit(state: State) -> State:
    """Writes what torch saves of a `ViTModel` of version 5, beside an optimizer."""
    named = _named(transformers_vit(state), _OF_VERSION_5)
    return {"model": named, "optimizer": {"exp_avg": torch.zeros(3)}}


def mmpretrain(state: State) -> State:
    """Writes mmpretrain's `VisionTransformer`, as mmsegmentation has it for a backbone."""
    return {f"backbone.{key}": value for key, value in _named(state, _MMPRETRAIN).items()}


def official_dinov3(state: State) -> State:
    """Writes Meta's own file: timm's biases in one, with one of keys that a mask takes away."""
    periods = state["rope_embed.periods"]
    width = len(state["norm.bias"])
    written = _named(state, {r"^reg_token": "storage_tokens", r"gamma_(\d)": r"ls\1.gamma"})
    for block in range(2):
        stem = f"blocks.{block}.attn."
        nothing = torch.zeros(width)
        q, v = (written.pop(f"{stem}{part}_bias", nothing) for part in "qv")
        written[f"{stem}qkv.bias"] = torch.cat([q, nothing + 7, v])
        written[f"{stem}qkv.bias_mask"] = torch.cat([nothing + 1, nothing, nothing + 1])
    return written | {"mask_token": torch.zeros(1, width), "rope_embed.periods": periods.bfloat16()}


def _named(state: State, names: Mapping[str, str]) -> State:
    named: State = {}
    for key, value in state.items():
        for ours, theirs in names.items():
            key = re.sub(ours, theirs, key)
        named[key] = value
    return named


def _apart(state: State) -> State:
    # Queries, keys and values; without a bias of keys where timm has none.
    apart: State = {}
    for key, value in state.items():
        if ".attn.qkv." in key:
            parts = zip("qkv", value.chunk(3), strict=True)
            apart |= {key.replace("qkv", part): each for part, each in parts}
        else:
            apart[re.sub(r"\b([qv])_bias$", r"\1.bias", key)] = value
    return apart
