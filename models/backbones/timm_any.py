"""Any network of timm that returns intermediate features, by its name there.

Its kind follows from the network, not from its name: a sketch of it on torch's meta device, which
needs no memory, runs once and shows its maps, its pooled features and whether it attends globally.
A ViT-like network becomes a `TimmViT`, a Swin a `Swin` or `SwinV2`, any other a `TimmMaps`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any

import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from models.backbones.base import Backbone, Tokens
from models.backbones.swin import Swin
from models.backbones.swin_v2 import SwinV2
from models.backbones.timm_base import layer_names, pretrained, stages_of
from models.backbones.timm_maps import TimmMaps
from models.backbones.timm_outline import Outline, outline_of, sketch_of
from models.backbones.vit import ViT
from utils.text import as_arguments


class TimmViT(ViT):
    """A ViT-like network as timm builds it, with timm's pooling.

    That is CLS, the mean followed by a norm, or attention: whatever its weights were trained with.
    """

    def __init__(self, net: Any, layers: str = "last") -> None:
        super().__init__(net, "mean", layers)
        if self.has_cls and net.global_pool == "token":
            self.pool = "cls"

    def pooled(self, last: Tokens) -> Tensor:
        """See `GlobalAttentionBackbone.pooled`."""
        patches, prefix = last
        vector: Tensor = self.net.forward_head(torch.cat([prefix, patches], 1), pre_logits=True)
        return vector

    def stages(self) -> list[nn.Module]:
        """The blocks; everything after them belongs to the last one."""
        return stages_of(self.net, layer_names(self.net))


def build(
    model: str,
    *,
    image_size: int,
    layers: str = "last",
    patch_size: int | None = None,
    drop_path: float = 0.0,
    output_stride: int = 32,
    **more: Any,
) -> Backbone:
    """Builds a network of timm.

    Args:
        model: its name there, with or without the tag of its weights: `convnext_tiny.fb_in1k`.
        image_size: side of the images that it is built for, in pixels.
        layers: see `parse_layers`.
        patch_size: in pixels; None: the model's own.
        drop_path: stochastic depth rate of the last block.
        output_stride: of a convolutional network, by dilation; 32: the model's own.
        more: further arguments of `timm.create_model`.

    Raises:
        ValueError: there is no such model, it does not have one of the settings, or it returns no
            intermediate features at this size; names similar models, or repeats timm's message.
    """
    _check_name(model)
    options = dict(more)
    if patch_size is not None:
        options["patch_size"] = patch_size
    if output_stride != 32:
        options["output_stride"] = output_stride
    if drop_path:
        options["drop_path_rate"] = drop_path
    try:
        options, side, fixed, outline = _looked_at(model, options, image_size)
    except Exception as error:  # timm's networks may raise anything for a setting
        said = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        told = f" and {as_arguments(options)}" if options else ""
        raise ValueError(
            f"--backbone.name timm/{model} cannot be used with images of {image_size} px{told}: "
            f"{said}."
        ) from error
    net = timm.create_model(model, num_classes=0, **options)
    backbone = _wrapped(net, outline, layers)
    backbone.fixed_side = side if fixed else None
    _describe(backbone, model, options)
    return backbone


def _check_name(model: str) -> None:
    name, _, tag = model.partition(".")
    if not timm.is_model(name):
        known = timm.list_models()
        longer = [each for each in known if each.startswith(name)]
        near = [f"timm/{each}" for each in longer[:3] or get_close_matches(name, known, 3)]
        raise ValueError(
            f"--backbone.name timm/{model}: timm {timm.__version__} has no such model. "
            + (f"Did you mean {', '.join(near)}?" if near else "See timm.list_models().")
        )
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{name}.*")]
    if tag and tag not in tags:
        raise ValueError(
            f"--backbone.name timm/{model}: there are no weights {tag} of it. Its tags: "
            f"{', '.join(tags) or 'none'}."
        )


def _looked_at(
    model: str, options: Mapping[str, Any], image_size: int
) -> tuple[dict[str, Any], int, bool, Outline]:
    """Finds out how to build a network for an image size (see `_sized`), and its outline.

    Raises:
        Exception: anything that timm or torch raise.
    """

    def look(device: str) -> tuple[dict[str, Any], int, bool, Outline]:
        first = sketch_of(model, device, **options)
        sized, side, fixed = _sized(first, options, image_size)
        outline = outline_of(sketch_of(model, device, **sized), side)
        return sized, side, fixed, outline

    try:
        return look("meta")
    except Exception:  # older versions, and a few models, fail on the meta device
        return look("cpu")


def _sized(
    sketch: Any, options: Mapping[str, Any], image_size: int
) -> tuple[dict[str, Any], int, bool]:
    """Returns how to build a network for an image size: options, side in pixels, whether fixed.

    Raises:
        TypeError: the network does not take one of the options.
    """
    known = _parameters(type(sketch))
    sized = dict(options)
    if "drop_path_rate" in known:
        sized.setdefault("drop_path_rate", 0.0)  # some models of timm have a rate of their own
    flexible = {"dynamic_img_size": True, "strict_img_size": False}
    chosen = [name for name in flexible if name in known][:1]
    sized |= {name: flexible[name] for name in chosen}
    side = image_size
    if chosen:  # whole patches: positions are interpolated for other image sizes
        multiple = int(sketch.feature_info[-1]["reduction"])
        side = -(-image_size // multiple) * multiple
    if "img_size" in known:
        sized["img_size"] = side
    return sized, side, bool(sketch.pretrained_cfg["fixed_input_size"] and not chosen)


def _parameters(kind: type) -> set[str]:
    """Returns the parameters of a class, with those of its bases if it passes on the others."""
    found: set[str] = set()
    for each in kind.__mro__:
        own = inspect.signature(each).parameters.values()
        found |= {parameter.name for parameter in own}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own):
            break
    return found


def _wrapped(net: Any, outline: Outline, layers: str) -> Backbone:
    if outline.attends:
        return TimmViT(net, layers)
    if isinstance(net, SwinTransformer):
        return Swin(net, layers)
    if isinstance(net, SwinTransformerV2):
        return SwinV2(net, outline, layers)
    return TimmMaps(net, outline, layers)


def _describe(backbone: Backbone, model: str, options: Mapping[str, Any]) -> None:
    """Sets how timm builds the network, how images are normalised and where weights are."""
    net: Any = backbone.net
    about = net.pretrained_cfg
    for buffer, values in ((backbone.mean, about["mean"]), (backbone.std, about["std"])):
        buffer.copy_(torch.tensor(values).view(3, 1, 1))
    classifier = about.get("classifier") or ()
    backbone.replaced = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    lasting = {name: value for name, value in options.items() if name != "drop_path_rate"}
    backbone.plain = f'timm.create_model("{model}", {as_arguments({"num_classes": 0, **lasting})})'
    if about.get("hf_hub_id") or about.get("url"):
        backbone.sources["pretrained"] = partial(pretrained, model, **lasting)
