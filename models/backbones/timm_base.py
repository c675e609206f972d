"""Base of the backbones from timm: timm runs its network, hooks answer attention requests."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import timm
from torch import Tensor, nn

from models.attention import Attention, AttentionFactors, AttentionRequest, pass_with_attention
from models.backbones.base import AttentionBackbone, StateDict
from models.layer_numbers import parse_layers


class TimmBackbone(AttentionBackbone):
    """A network from timm with attention in its blocks, run by its own `forward_intermediates`.

    A subclass returns the attention modules, computes attention from the input of one of them, and
    converts timm's output to `Features`. Widths and strides of the maps are those of timm's
    `feature_info`.

    Args:
        net: without classifier.
        layers: which layers of `feature_info` become maps, see `parse_layers`.
        patch_multiple: see `Backbone`.
    """

    net: Any  # timm's networks share methods, but no base class

    def __init__(self, net: Any, layers: str, patch_multiple: int) -> None:
        info = net.feature_info
        self.layers = parse_layers(layers, len(info))
        super().__init__(
            net.num_features,
            tuple(int(info[layer]["num_chs"]) for layer in self.layers),
            tuple(int(info[layer]["reduction"]) for layer in self.layers),
            patch_multiple,
        )
        self.net = net
        self.attention_heads = tuple(module.num_heads for module in self.attention_modules())

    @abstractmethod
    def attention_modules(self) -> list[Any]:
        """Returns the attention module of every block, shallow to deep."""

    @abstractmethod
    def block_attention(
        self,
        size: tuple[int, int],
        request: AttentionRequest,
        block: int,
        attn: Any,
        tokens: Tensor,
        **inputs: Any,
    ) -> Attention | AttentionFactors:
        """Answers a request for one block, for the first `request.num_images` images only.

        Args:
            size: height and width of the images in pixels.
            request: what to compute.
            block: index from the front.
            attn: the block's attention module.
            tokens: its normalised input.
            inputs: further inputs that the block passes to it, such as masks.
        """

    def intermediates(
        self, images: Tensor, request: AttentionRequest | None = None, **options: Any
    ) -> tuple[Any, tuple[Attention | AttentionFactors, ...]]:
        """Runs the network once.

        Args:
            images: `(B, 3, H, W)`, see `Backbone`.
            request: for attention; None leaves the network without hooks.
            options: of timm's `forward_intermediates`.

        Returns:
            What timm returns, and one answer per requested block.

        Raises:
            ValueError: sides are not multiples of `patch_multiple`, or there is no such block.
        """
        run = partial(self.net.forward_intermediates, self.normalise(images), **options)
        if request is None:
            return run(), ()
        size = (images.shape[-2], images.shape[-1])
        answer = partial(self.block_attention, size, request)
        modules: list[nn.Module] = self.attention_modules()
        return pass_with_attention(run, modules, request, answer)


def layer_names(net: Any) -> list[str]:
    """Returns the module names of a network's layers: for a ViT its blocks."""
    return [str(info["module"]) for info in net.feature_info]


def stages_of(net: nn.Module, layers: Sequence[str]) -> list[nn.Module]:
    """Cuts a network after each of its layers.

    Args:
        net: registers its modules in the order in which they run.
        layers: names of modules in it, shallow to deep.

    Returns:
        Every layer with the modules between the previous one and it; modules after the last layer
        belong to that. Empty if some layer is not a module of the network.
    """
    stages: list[list[nn.Module]] = []
    found, between = [], []
    for name, part in _parts(net, "", layers):
        between.append(part)
        if name in layers:
            found.append(name)
            stages.append(between if stages else [part])
            between = []
    if found != list(layers):
        return []
    stages[-1] += between
    return [nn.ModuleList(stage) for stage in stages]


def _parts(net: nn.Module, prefix: str, layers: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yields the largest modules that contain no layer, and the layers."""
    for name, child in net.named_children():
        path = prefix + name
        if any(layer.startswith(path + ".") for layer in layers):
            yield from _parts(child, path + ".", layers)
        else:
            yield path, child


def attention_modules(net: Any) -> list[Any]:
    """Returns the attention module of every block of a ViT-like network."""
    blocks = [net.get_submodule(name) for name in layer_names(net)]
    return [getattr(block, "attn", block) for block in blocks]  # in some, the block itself is one


def pretrained(model: str, **options: Any) -> StateDict:
    """Fetches weights that timm publishes, fitted to a network built with `options`.

    Raises:
        ValueError: they cannot be fetched; the message names the page to get them from by hand.
    """
    try:
        net = timm.create_model(model, pretrained=True, num_classes=0, **options)
    except Exception as error:  # by disk, network, the hub's client or the file
        said = str(error).strip().partition("\n")[0].rstrip(".")
        about = timm.get_pretrained_cfg(model)
        page = f"https://huggingface.co/{about.hf_hub_id if about else 'timm'}"
        raise ValueError(
            f"Could not fetch the weights of timm/{model} ({said}). Fetch model.safetensors by "
            f"hand from {page} and pass its path: --backbone.weights FILE."
        ) from error
    state: StateDict = net.state_dict()
    return state
