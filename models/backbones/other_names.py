"""Renames the weights of ViTs and ConvNeXts from other libraries to timm's names."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

_ROUNDED = 1e-2  # relative error of periods stored in bfloat16

_VIT, _CONVNEXT = "blocks.0.attn.qkv.weight", "stages.0.blocks.0.conv_dw.weight"  # of timm

# For each library: timm's name that tells the kind of network, a name that only this library has,
# and its names with timm's. Prefixes stay.
_LIBRARIES = {
    # Hugging Face's transformers: ViT, DINO, MAE, DINOv2, DINOv3; the first three also with the
    # names that version 5 uses in memory
    (_VIT, r"embeddings\.patch_embeddings\."): {
        r"embeddings\.(cls_token|mask_token|register_tokens)$": r"\1",
        r"embeddings\.position_embeddings$": "pos_embed",
        r"embeddings\.patch_embeddings\.(projection\.)?": "patch_embed.proj.",
        r"(encoder\.)?layers?\.(?=\d)": "blocks.",
        r"layernorm\.": "norm.",
        r"layernorm_before\.": "norm1.",
        r"layernorm_after\.": "norm2.",
        r"attention\.(attention\.)?(query|q_proj)\.": "attn.q.",
        r"attention\.(attention\.)?(key|k_proj)\.": "attn.k.",
        r"attention\.(attention\.)?(value|v_proj)\.": "attn.v.",
        r"attention\.(output\.dense|o_proj)\.": "attn.proj.",
        r"(intermediate\.dense|mlp\.up_proj)\.": "mlp.fc1.",
        r"(output\.dense|mlp\.down_proj)\.": "mlp.fc2.",
        r"layer_scale(\d)\.lambda1$": r"ls\1.gamma",
    },
    # torchvision
    (_VIT, r"(?:^|\.)conv_proj\."): {
        r"class_token$": "cls_token",
        r"encoder\.pos_embedding$": "pos_embed",
        r"conv_proj\.": "patch_embed.proj.",
        r"encoder\.layers\.encoder_layer_": "blocks.",
        r"encoder\.ln\.": "norm.",
        r"ln_(\d)\.": r"norm\1.",
        r"self_attention\.in_proj_": "attn.qkv.",
        r"self_attention\.out_proj\.": "attn.proj.",
        r"mlp\.(0|linear_1)\.": "mlp.fc1.",
        r"mlp\.(3|linear_2)\.": "mlp.fc2.",
    },
    # mmpretrain, mmsegmentation
    (_VIT, r"(?:^|\.)patch_embed\.projection\."): {
        r"patch_embed\.projection\.": "patch_embed.proj.",
        r"attn\.attn\.in_proj_": "attn.qkv.",
        r"attn\.attn\.out_proj\.": "attn.proj.",
        r"(layers\.\d+\.)ln(\d)\.": r"\1norm\2.",
        r"ln1\.": "norm.",
        r"layers\.(?=\d+\.(norm|attn|ffn))": "blocks.",
        r"ffn\.layers\.0\.0\.": "mlp.fc1.",
        r"ffn\.layers\.1\.": "mlp.fc2.",
    },
    # ConvNeXt's own code, and its second version's
    (_CONVNEXT, r"(?:^|\.)downsample_layers\."): {
        r"downsample_layers\.0\.": "stem.",
        r"downsample_layers\.(\d)\.": r"stages.\1.downsample.",
        r"stages\.(\d)\.(?=\d)": r"stages.\1.blocks.",
        r"dwconv\.": "conv_dw.",
        r"pwconv(\d)\.": r"mlp.fc\1.",
        r"grn\.gamma$": "mlp.grn.weight",
        r"grn\.beta$": "mlp.grn.bias",
        r"(?<!\d\.)norm\.": "head.norm.",
    },
}


def in_timms_names(tensors: Mapping[str, Tensor], own: Collection[str]) -> Mapping[str, Tensor]:
    """Renames weights of another library as in timm; joins a ViT's queries, keys and values.

    Args:
        tensors: of a file, by name.
        own: names of the network's tensors; unless it is timm's, nothing is renamed.
    """
    named = dict(tensors)
    for (network, mark), names in _LIBRARIES.items():
        if network in own and any(re.search(mark, key) for key in tensors):
            rules = {re.compile(rf"(?<![^.]){theirs}"): ours for theirs, ours in names.items()}
            anew = {_renamed(key, rules): tensor for key, tensor in named.items()}
            # Those of ConvNeXt V2 have three more axes.
            named = {key: t.flatten() if ".mlp.grn." in key else t for key, t in anew.items()}
    if len(named) < len(tensors):  # two got the same name: another kind of network
        return tensors
    apart_here = any(key.endswith("attn.q.weight") for key in own)  # as in CaiT's last blocks
    return _joined(named) if _VIT in own and not apart_here else named


def _renamed(key: str, rules: Mapping[re.Pattern[str], str]) -> str:
    for theirs, ours in rules.items():
        key = theirs.sub(ours, key)
    return key


def _joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Joins separate queries, keys and values to one tensor; keys may have no bias."""
    joined = dict(tensors)
    for key in tensors:
        found = re.fullmatch(r"(.*\battn\.)q\.(weight|bias)", key)
        if found is None:
            continue
        names = [f"{found[1]}{part}.{found[2]}" for part in "qkv"]
        parts = [tensors.get(name) for name in names]
        if found[2] == "bias" and parts[1] is None:
            parts[1] = torch.zeros_like(tensors[key])
        whole = [part for part in parts if part is not None]
        if len(whole) == len(names):
            joined = {name: value for name, value in joined.items() if name not in names}
            joined[f"{found[1]}qkv.{found[2]}"] = torch.cat(whole)
    return joined


def in_the_names_of(net: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames weights of official DeiT-III, DINOv2 and DINOv3 files as in a network of timm.

    Args:
        net: of timm, with or without LayerScale and registers.
        state: of a file; names without a place in `net` stay as they are.
    """
    named, own = dict(state), net.state_dict()
    for theirs in ("register_tokens", "storage_tokens"):
        if theirs in named:
            named["reg_token"] = named.pop(theirs)
    if "blocks.0.ls1.gamma" in own:
        named = {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", key): named[key] for key in named}
    return _of_dinov3(net, own, named) if "blocks.0.gamma_1" in own else named


def _of_dinov3(
    net: nn.Module, own: Collection[str], state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Renames LayerScale; drops positions that timm computes itself, and biases that are 0."""
    known = dict(net.named_buffers()).get("rope.periods")
    named = {re.sub(r"\bls(\d)\.gamma$", r"gamma_\1", key): value for key, value in state.items()}
    periods = named.get("rope_embed.periods")
    if periods is not None and known is not None and periods.shape == known.shape:
        alike = torch.allclose(periods.float(), known.float(), rtol=_ROUNDED)
        named = {k: v for k, v in named.items() if not alike or k != "rope_embed.periods"}
    for key in [key for key in named if key.endswith("attn.qkv.bias") and key not in own]:
        mask = named.pop(f"{key}_mask", torch.ones_like(named[key]))
        bias = named.pop(key).masked_fill(mask == 0, 0)  # the bias of keys
        q, k, v = bias.chunk(3)
        stem = key.removesuffix("qkv.bias")
        if f"{stem}q_bias" in own and not k.any():
            named |= {f"{stem}q_bias": q, f"{stem}v_bias": v}
        elif bias.any():  # 0 in the distilled networks, which timm builds without it
            named[key] = bias
    return named
