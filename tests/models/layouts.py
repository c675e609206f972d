"""Weight files of the field: random networks of timm and torchvision, written as others do."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
import torchvision
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.backbones.base import Backbone, Features
from models.backbones.resnet import resnet18, resnet50
from models.backbones.timm_any import build
from models.backbones.vit import vit_small
from tests.models import other_libraries as others

State = dict[str, Any]

_SIZES: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3}


@dataclass(frozen=True)
class Layout:
    """A kind of file.

    Attributes:
        source: makes the network whose weights it holds.
        write: makes the content of the file from the network's state dict.
        ours: makes the backbone that it is loaded into.
        refused: words of the error; None where it is loaded.
        side: of the images that both see, in pixels.
    """

    source: Callable[[], nn.Module]
    write: Callable[[State], State]
    ours: Callable[[], Backbone]
    refused: str | None = None
    side: int = 64

    def network(self, seed: int = 1) -> nn.Module:
        """Makes the source with every weight and statistic at random, so that each one shows."""
        torch.manual_seed(seed)
        net = self.source().eval()
        for name, value in net.state_dict().items():
            if value.ndim == 1 and value.is_floating_point():
                mean = 1.0 if name.endswith(("weight", "var")) else 0.3 * name.endswith("gamma")
                value.uniform_(mean - 0.2, mean + 0.2)
            elif value.ndim in (2, 3):
                value.normal_(0, 0.1)
        return net

    def largest_difference(self, net: nn.Module, backbone: Backbone) -> float:
        """Returns the largest difference of features between source and loaded backbone."""
        images = torch.rand(2, 3, self.side, self.side, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            theirs = source_features(net, (images - backbone.mean) / backbone.std)
            ours = _flat(backbone.eval()(images))
        return float((ours - theirs).abs().max())


def source_features(net: Any, pixels: Tensor) -> Tensor:
    """Returns the source's tokens `(B, P + h*w, C)`; a ResNet's pooled vector is its prefix."""
    if isinstance(net, torchvision.models.ResNet):
        x = net.maxpool(net.relu(net.bn1(net.conv1(pixels))))
        return _with_mean(net.layer4(net.layer3(net.layer2(net.layer1(x)))))
    if isinstance(net, ConvNeXt):
        x = net.forward_features(pixels)
        pooled = net.forward_head(x, pre_logits=True)[:, None]
        return torch.cat([pooled, x.flatten(2).transpose(1, 2)], 1)
    if isinstance(net, torchvision.models.VisionTransformer):
        cls = net.class_token.expand(len(pixels), -1, -1)
        return torch.as_tensor(net.encoder(torch.cat([cls, net._process_input(pixels)], 1)))
    if hasattr(net, "backbone"):
        return _with_mean(net.backbone(pixels)["out"])
    tokens: Tensor = net.forward_features(pixels)
    return tokens


def _with_mean(x: Tensor) -> Tensor:
    patches = x.flatten(2).transpose(1, 2)
    return torch.cat([patches.mean(1, keepdim=True), patches], 1)


def _flat(features: Features) -> Tensor:
    patches = features.maps[-1].flatten(2).transpose(1, 2)
    prefix = features.prefix[-1]
    return torch.cat([prefix if prefix.shape[1] else features.pooled[:, None], patches], 1)


def prefixed(state: State, prefix: str) -> State:
    """Puts a prefix before every name."""
    return {prefix + key: value for key, value in state.items()}


def other(state: State) -> State:
    """Returns a network of the same names that is another one."""
    return {key: value + 1 for key, value in state.items()}


def numbered(state: State, net: nn.Module) -> State:
    """Names modules by their number, as nn.Sequential(*net.children()) does."""
    numbers = {name: str(index) for index, (name, _) in enumerate(net.named_children())}
    parts = {key: key.partition(".") for key in state}
    return {f"{numbers[first]}.{rest}": state[key] for key, (first, _, rest) in parts.items()}


def _timm(name: str, side: int = 64, **settings: Any) -> Callable[[], nn.Module]:
    sizes = _SIZES | {"img_size": side, "num_classes": 0, "dynamic_img_size": True} | settings
    return lambda: timm.create_model(name, **sizes)


def _plain(**settings: Any) -> Callable[[], nn.Module]:
    sizes = _SIZES | {"img_size": 64, "patch_size": 16, "num_classes": 0, "dynamic_img_size": True}
    return lambda: VisionTransformer(**sizes | settings)


def _ours(patch_size: int = 16, side: int = 64, **settings: Any) -> Callable[[], Backbone]:
    sizes = {"image_size": side, "patch_size": patch_size}
    return lambda: vit_small(**_SIZES | sizes | settings)


def _r18() -> nn.Module:
    return torchvision.models.resnet18(weights=None)


def _ours_r18() -> Backbone:
    return resnet18(image_size=64)


def _as_is(state: State) -> State:
    return state


def _mae(state: State) -> State:
    decoder = {
        "mask_token": torch.zeros(1, 1, 8),
        "decoder_pos_embed": torch.zeros(1, 17, 8),
        "decoder_blocks.0.norm1.weight": torch.ones(8),
        "decoder_norm.weight": torch.ones(8),
        "decoder_pred.weight": torch.ones(4, 8),
    }
    return {"model": state | decoder, "epoch": 3}


def _facebook_registers(state: State) -> State:
    # The official file: a position for CLS beside those of the patches, another name, a mask token.
    renamed = {("register_tokens" if k == "reg_token" else k): v for k, v in state.items()}
    # Not the same in all channels, which the norms would take out.
    place = torch.linspace(-0.1, 0.1, 48).expand_as(state["cls_token"])
    return renamed | {
        "cls_token": state["cls_token"] - place,
        "pos_embed": torch.cat([place, state["pos_embed"]], 1),
        "mask_token": torch.zeros(1, 48),
    }


def _dinov2_training(state: State) -> State:
    # Four blocks in two chunks; a block has the same number in whichever chunk it lies.
    chunked = {}
    for key, value in state.items():
        if key.startswith("blocks."):
            block = int(key.split(".")[1])
            key = f"blocks.{block // 2}.{key.removeprefix('blocks.')}"
        chunked[key] = value
    assert "blocks.1.2.norm1.weight" in chunked
    return {
        "model": prefixed(other(chunked), "student.backbone.")
        | prefixed(chunked | {"mask_token": torch.zeros(1, 48)}, "teacher.backbone.")
        | {"teacher.dino_head.mlp.0.weight": torch.zeros(3, 48)},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}},
        "iteration": 7,
    }


def _gamma_1(state: State) -> State:
    return {re.sub(r"ls(\d)\.gamma", r"gamma_\1", key): value for key, value in state.items()}


def _without_statistics(state: State) -> State:
    return {key: value for key, value in state.items() if "running" not in key}


def _dinov2(size: int = 56, **settings: Any) -> Callable[[], nn.Module]:
    return _timm("vit_small_patch14_dinov2", size, **settings)


def _reg4(side: int = 56) -> nn.Module:
    return _timm("vit_small_patch14_reg4_dinov2", side)()


def _timms_reg4() -> Backbone:
    return build("vit_small_patch14_reg4_dinov2", image_size=56, **_SIZES)


def _dinov3(
    biased: str = "", change: Callable[[State], State] = _as_is, refused: str | None = None
) -> Layout:
    name = f"vit_small_patch16_dinov3{biased}"

    def write(state: State) -> State:
        net: Any = _timm(name)()
        return change(others.official_dinov3(state | {"rope_embed.periods": net.rope.periods}))

    return Layout(_timm(name), write, lambda: build(name, image_size=64, **_SIZES), refused)


def _without_masks(state: State) -> State:
    # Keys are turned after a bias is added to them: it is none that softmax takes away.
    return {key: value for key, value in state.items() if not key.endswith("bias_mask")}


def _other_periods(state: State) -> State:
    return state | {"rope_embed.periods": 1.1 * state["rope_embed.periods"]}


def _convnext(name: str) -> Layout:
    sizes: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": [8] * 4}
    return Layout(
        lambda: timm.create_model(name, num_classes=0, **sizes),
        others.official_convnext,
        lambda: build(name, image_size=64, **sizes),
    )


def _torchvision_vit() -> nn.Module:
    sizes = {"num_layers": 2, "num_heads": 3, "hidden_dim": 48, "mlp_dim": 192}
    return torchvision.models.VisionTransformer(image_size=64, patch_size=16, **sizes)


def _lora(state: State) -> State:
    named = {key.replace("attn.qkv.", "attn.qkv.base_layer."): v for key, v in state.items()}
    return named | {"blocks.0.attn.qkv.lora_A.default.weight": torch.zeros(2, 48)}


def _wrapped_blocks(wrapper: str) -> Callable[[State], State]:
    def write(state: State) -> State:
        return {re.sub(r"^(blocks\.\d+\.)", rf"\1{wrapper}.", k): v for k, v in state.items()}

    return write


def _deeplab() -> nn.Module:
    make = torchvision.models.segmentation.deeplabv3_resnet50
    net: nn.Module = make(weights=None, weights_backbone=None, num_classes=5)
    return net


def _wrapped(prefix: str) -> Layout:
    def write(state: State) -> State:
        return prefixed(state, prefix) | {
            f"{prefix.partition('.')[0]}.projector.0.weight": torch.ones(2, 2),
            "queue": torch.ones(3),
        }

    return Layout(_r18, write, _ours_r18)


WRAPPERS = [
    "model.",
    "encoder.",
    "backbone._orig_mod.",
    "_orig_mod.module.",
    "module.encoder_q.",
    "module.base_encoder.",
    "student_backbone.",
    "model.teacher.backbone.",
    "0.",
    "classy_state_dict.base_model.model.trunk._feature_blocks.",
]

LAYOUTS: dict[str, Layout] = {
    "timm ViT": Layout(_plain(), _as_is, _ours()),
    "timm ViT with its head": Layout(
        _plain(), lambda state: state | {"head.weight": torch.zeros(5, 48)}, _ours()
    ),
    "DINO, teacher": Layout(_plain(), lambda state: {"teacher": state}, _ours()),
    "DINO, full checkpoint": Layout(
        _plain(),
        lambda state: {
            "student": prefixed(other(state), "module.backbone."),
            "teacher": prefixed(state, "backbone.") | {"head.mlp.0.weight": torch.zeros(3, 3)},
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}},
            "args": argparse.Namespace(arch="vit_small"),
        },
        _ours(),
    ),
    "DINOv2": Layout(_dinov2(), _as_is, _ours(14, 56), side=56),
    "DINOv2, 518 px, on 56 px": Layout(_dinov2(518), _as_is, _ours(14, 56), side=56),
    "DINOv2, 4 registers, timm": Layout(_reg4, _as_is, _ours(14, 56, registers=4), side=56),
    "DINOv2, 4 registers, official": Layout(
        _reg4, _facebook_registers, _ours(14, 56, registers=4), side=56
    ),
    "DINOv2, 4 registers, official, in timm's": Layout(
        _reg4, _facebook_registers, _timms_reg4, side=56
    ),
    "DINOv2, 4 registers, official, 112 px, in timm's on 56 px": Layout(
        lambda: _reg4(112), _facebook_registers, _timms_reg4, side=56
    ),
    "DINOv2, full checkpoint": Layout(
        _dinov2(depth=4), _dinov2_training, _ours(14, 56, depth=4), side=56
    ),
    "MAE": Layout(_plain(), _mae, _ours()),
    "iBOT, student": Layout(
        _plain(), lambda state: {"student": state | {"masked_embed": torch.ones(1, 48)}}, _ours()
    ),
    "DeiT-III": Layout(_timm("deit3_small_patch16_224"), _as_is, _ours()),
    "DeiT-III, official, in timm's": Layout(
        _timm("deit3_small_patch16_224"),
        lambda state: {"model": _gamma_1(state) | {"head.weight": torch.zeros(5, 48)}},
        lambda: build("deit3_small_patch16_224", image_size=64, **_SIZES),
    ),
    "ViT as EMA of timm": Layout(
        _plain(), lambda state: {"state_dict": other(state), "state_dict_ema": state}, _ours()
    ),
    "ViT, torchvision": Layout(_torchvision_vit, _as_is, _ours()),
    "ViT, transformers": Layout(_plain(), others.transformers_vit, _ours()),
    "ViT, transformers 5": Layout(_plain(), others.transformers_5_vit, _ours()),
    "ViT, mmpretrain": Layout(_plain(), others.mmpretrain, _ours()),
    "DINOv2, transformers": Layout(_dinov2(), others.transformers_dinov2, _ours(14, 56), side=56),
    "DINOv3, official, in timm's": _dinov3(),
    "DINOv3 with biases, official, in timm's": _dinov3("_qkvb"),
    "DINOv3 with biases, transformers, in timm's": replace(
        _dinov3("_qkvb"), write=others.transformers_dinov3
    ),
    "ConvNeXt, official, in timm's": _convnext("convnext_tiny"),
    "ConvNeXt V2, official, in timm's": _convnext("convnextv2_tiny"),
    **{
        f"ViT whose blocks are in a {wrapper}": Layout(_plain(), _wrapped_blocks(wrapper), _ours())
        for wrapper in ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
    },
    "ResNet-18": Layout(_r18, _as_is, _ours_r18),
    "Barlow Twins, full checkpoint": Layout(
        _r18,
        lambda state: {
            "model": prefixed(state, "module.backbone.") | {"module.bn.running_mean": torch.ones(3)}
        },
        _ours_r18,
    ),
    "MoCo, full checkpoint": Layout(
        _r18,
        lambda state: {
            "state_dict": prefixed(state, "module.encoder_q.")
            | prefixed(other(state), "module.encoder_k.")
            | {"module.queue": torch.ones(3)}
        },
        _ours_r18,
    ),
    "solo-learn": Layout(
        _r18,
        lambda state: {
            "state_dict": prefixed(state, "backbone.")
            | prefixed(other(state), "momentum_backbone.")
            | {"classifier.weight": torch.ones(3)}
        },
        _ours_r18,
    ),
    "SwAV": Layout(
        _r18,
        lambda state: prefixed(
            state | {"projection_head.0.weight": torch.ones(3), "prototypes.weight": torch.ones(3)},
            "module.",
        ),
        _ours_r18,
    ),
    "lightly, nn.Sequential": Layout(
        _r18,
        lambda state: {
            "state_dict": prefixed(numbered(state, _r18()), "backbone.")
            | {"projection_head.layers.0.weight": torch.ones(3)}
        },
        _ours_r18,
    ),
    "DeepLabV3": Layout(_deeplab, _as_is, lambda: resnet50(image_size=64, output_stride=8)),
    **{f"ResNet-18 under {prefix}": _wrapped(prefix) for prefix in WRAPPERS},
    # Refused: nothing of ours computes the same.
    "DINOv2, 4 registers, no setting": Layout(
        _reg4, _as_is, _ours(14, 56), "register tokens, --backbone.registers"
    ),
    "DINOv3": Layout(
        _timm("vit_small_patch16_dinov3"), _as_is, _ours(), "register tokens.*position embeddings"
    ),
    "DINOv3 with a bias of keys": _dinov3("", _without_masks, "a bias of queries, keys and values"),
    "DINOv3 with a bias of keys beside others": _dinov3(
        "_qkvb", _without_masks, "a bias of queries, keys and values"
    ),
    "DINOv3 of other periods": _dinov3("", _other_periods, "rotary positions"),
    "ViT with rotary positions": Layout(
        _timm("vit_small_patch16_rope_ape_224"), _as_is, _ours(), "LayerScale .* rotary positions"
    ),
    "DeiT-III, official spelling": Layout(
        _timm("deit3_small_patch16_224"),
        _gamma_1,
        _ours(),
        r"LayerScale as DeiT-III \(timm/deit3_small_patch16_224\)",
    ),
    "LoRA": Layout(_plain(), _lora, _ours(), "adapters .LoRA."),
    "CLIP": Layout(_timm("vit_base_patch16_clip_224"), _as_is, _ours(), "norm before the blocks"),
    "q/k norms": Layout(_plain(qk_norm=True), _as_is, _ours(), "norms of queries and keys"),
    "SigLIP": Layout(_timm("vit_base_patch16_siglip_224"), _as_is, _ours(), "class token"),
    "I-JEPA": Layout(
        _plain(class_token=False, global_pool="avg", fc_norm=False),
        lambda state: {
            "encoder": prefixed(other(state), "module."),
            "target_encoder": prefixed(state, "module."),
        },
        _ours(),
        "class token",
    ),
    "BEiT": Layout(
        lambda: timm.create_model("beit_base_patch16_224", **_SIZES, img_size=64, num_classes=0),
        _as_is,
        _ours(),
        "relative positions",
    ),
    "EVA-02": Layout(
        _timm("eva02_tiny_patch14_224", 56),
        _as_is,
        _ours(14, 56),
        "separate queries, keys or values.*norm after the pooling",
    ),
    "distilled DeiT": Layout(
        _timm("deit_tiny_distilled_patch16_224"), _as_is, _ours(), "distillation token"
    ),
    "position grid of 2 x 3": Layout(_plain(img_size=(32, 48)), _as_is, _ours(), "square grid"),
    "ResNet without statistics": Layout(_r18, _without_statistics, _ours_r18, "running statistics"),
}
