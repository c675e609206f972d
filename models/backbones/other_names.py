"""Names of a ViT's and a ConvNeXt's weights in other libraries, as timm's."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

_ROUNDED = 1e-2  # of periods that are kept in bfloat16

_VIT, _CONVNEXT = "blocks.0.attn.qkv.weight", "stages.0.blocks.0.conv_dw.weight"  # of timm

# Each library by what it is a network of and a name that only it has; its names with timm's.
# Whatever is in front stays.
_LIBRARIES = {
    # Hugging Face's transformers: ViT, DINO, MAE, DINOv2, DINOv3; also as its version 5 has the
    # first three in memory
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
    """Names a network of another library as timm does; joins a ViT's queries, keys and values.

    Args:
        tensors: of a file, by name.
        own: names of the network's tensors; of others than timm's nothing is named anew.
    """
    named = dict(tensors)
    for (network, mark), names in _LIBRARIES.items():
        if network in own and any(re.search(mark, key) for key in tensors):
            rules = {re.compile(rf"(?<![^.]){theirs}"): ours for theirs, ours in names.items()}
            anew = {_renamed(key, rules): tensor for key, tensor in named.items()}
            # Those of ConvNeXt V2 have three axes more.
            named = {key: t.flatten() if ".mlp.grn." in key else t for key, t in anew.items()}
    if len(named) < len(tensors):  # two have one name: it is something else
        return tensors
    apart_here = any(key.endswith("attn.q.weight") for key in own)  # as in a CaiT's last blocks
    return _joined(named) if _VIT in own and not apart_here else named


def _renamed(key: str, rules: Mapping[re.Pattern[str], str]) -> str:
    for theirs, ours in rules.items():
        key = theirs.sub(ours, key)
    return key


def _joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns queries, keys and values that are apart as one; keys may do without a bias."""
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
    """Names what official files of DeiT-III, DINOv2 and DINOv3 have as a network of timm does.

    Args:
        net: of timm, with LayerScale and registers or without.
        state: of a file; what `net` has no place for stays as it is.
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
    """Names LayerScale, and leaves out the positions and biases that timm computes without."""
    known = dict(net.named_buffers()).get("rope.periods")
    named = {re.sub(r"\bls(\d)\.gamma$", r"gamma_\1", key): value for key, value in state.items()}
    periods = named.get("rope_embed.periods")
    if periods is not None and known is not None and periods.shape == known.shape:
        alike = torch.allclose(periods.float(), known.float(), rtol=_ROUNDED)
        named = {k: v for k, v in named.items() if not alike or k != "rope_embed.periods"}
    for key in [key for key in named if key.endswith("attn.qkv.bias") and key not in own]:
        mask = named.pop(f"{key}_mask", torch.ones_like(named[key]))
        bias = named.pop(key).masked_fill(mask == 0, 0)  # of keys
        q, k, v = bias.chunk(3)
        stem = key.removesuffix("qkv.bias")
        if f"{stem}q_bias" in own and not k.any():
            named |= {f"{stem}q_bias": q, f"{stem}v_bias": v}
        elif bias.any():  # it has none in the distilled ones, for which timm has networks without
            named[key] = bias
    return named
