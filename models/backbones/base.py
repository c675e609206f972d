"""The interface of all backbones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from models.attention import Attention, AttentionFactors, AttentionRequest

Pool = Literal["cls", "mean"]
StateDict = Mapping[str, Tensor]
Tokens = tuple[Tensor, Tensor]  # patches (B, h*w, C) and prefix (B, P, C), timm's order

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Features:
    """Features of a batch of B images.

    Attributes:
        pooled: `(B, D)`, one vector per image.
        maps: one `(B, C, h, w)` per chosen layer, shallow to deep, after the final norm.
        prefix: one `(B, P, C)` per map: CLS and register tokens; P = 0 for convolutional networks.
        strides: image pixels per map cell, one per map.
        attention: one per requested block; None if not requested.
        factors: the same if `factors` were requested.
    """

    pooled: Tensor
    maps: tuple[Tensor, ...]
    prefix: tuple[Tensor, ...]
    strides: tuple[int, ...]
    attention: tuple[Attention, ...] | None = None
    factors: tuple[AttentionFactors, ...] | None = None

    @property
    def answers(self) -> tuple[Attention | AttentionFactors, ...]:
        """What was requested, of either kind; empty without a request."""
        return (*(self.attention or ()), *(self.factors or ()))

    def with_answers(self, answers: Sequence[Attention | AttentionFactors]) -> Features:
        """Returns the same features with these answers to a request."""
        rows = tuple(each for each in answers if isinstance(each, Attention))
        factors = tuple(each for each in answers if isinstance(each, AttentionFactors))
        return replace(self, attention=rows or None, factors=factors or None)


class Backbone(nn.Module, ABC):
    """Images `(B, 3, H, W)` to `Features` in one pass.

    Images are uint8 in 0 … 255, or floating point in 0 … 1; the backbone normalises them itself.

    Attributes:
        net: the wrapped network; its state dict has the architecture's public key names.
        embed_dim: D, width of `Features.pooled`.
        patch_multiple: image sides must be multiples of this many pixels.
        has_cls: whether the first token of `Features.prefix` is CLS.
        fixed_side: side of the square images that it takes, in pixels; None: any size.
        traces_any_size: whether torch.export can make one program of it for images of any size.
        layers: indices of the layers that become maps, shallow to deep.
        map_channels: C of each of `Features.maps`.
        map_strides: stride of each of `Features.maps`.
        sources: public weights by name, each a function that fetches a state dict.
        replaced: modules of its public layout that it replaces on purpose.
        plain: Python expression that builds `net` without this project; None if there is none.
        memory_format: the fastest one for weights and maps on a GPU.
    """

    memory_format: torch.memory_format = torch.contiguous_format
    replaced: tuple[str, ...] = ()
    plain: str | None = None
    fixed_side: int | None = None
    traces_any_size: bool = True
    has_cls: bool = False
    layers: tuple[int, ...] = ()

    net: nn.Module
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        embed_dim: int,
        map_channels: tuple[int, ...],
        map_strides: tuple[int, ...],
        patch_multiple: int = 1,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.map_channels = map_channels
        self.map_strides = map_strides
        self.patch_multiple = patch_multiple
        self.sources: dict[str, Callable[[], StateDict]] = {}
        self._trainable: tuple[nn.Module, ...] | None = None
        # Not persistent: the public layouts of the weights do not have them.
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    @abstractmethod
    def forward(self, images: Tensor, attention: AttentionRequest | None = None) -> Features:
        """Runs the network once.

        Raises:
            ValueError: sides are not multiples of `patch_multiple`, or the network cannot give the
                requested attention.
        """

    @abstractmethod
    def stages(self) -> list[nn.Module]:
        """Returns the parts that can be unfrozen one by one, shallow to deep."""

    @abstractmethod
    def layer_maps(self, images: Tensor) -> dict[str, Tensor]:
        """Runs the network and returns the map after every layer.

        Returns:
            `(B, C, h, w)` by the layer's name in `net`, shallow to deep: the residual stream before
            any final norm (the sum of a normalised token's channels has no gradient).
        """

    def fold(self, state: StateDict) -> tuple[StateDict, tuple[str, ...]]:
        """Folds weights that this network lacks into weights that it has, if that is exact.

        Args:
            state: of a file, in float32 or better, names as in `net`.

        Returns:
            The same function in fewer tensors, and a description of what was done.
        """
        return state, ()

    def adapt(self, key: str, value: Tensor) -> Tensor:
        """Resizes a weight of a file to this network if that makes sense, else returns it as it is.

        Raises:
            ValueError: its layout is ambiguous; the message does not name the file.
        """
        return value

    def freeze(self, unfreeze_last: int = 0) -> None:
        """Freezes parameters and buffers for good; the last `unfreeze_last` stages stay trained.

        Raises:
            ValueError: there are not so many stages.
        """
        stages = self.stages()
        if not 0 <= unfreeze_last <= len(stages):
            raise ValueError(
                f"--backbone.unfreeze_last {unfreeze_last}: this network has only {len(stages)} "
                "blocks or stages."
            )
        self._trainable = tuple(stages[len(stages) - unfreeze_last :])
        self.requires_grad_(False)
        for stage in self._trainable:
            stage.requires_grad_(True)
        self.train(self.training)

    @property
    def frozen(self) -> bool:
        """Whether it is fully frozen, so that a training pass needs no graph through it."""
        return self._trainable == ()

    @property
    def trained_stages(self) -> tuple[nn.Module, ...]:
        """The unfrozen stages of a partly frozen backbone; empty for any other."""
        return self._trainable or ()

    @property
    def recipe(self) -> str:
        """How it is built: the same weights with other sizes, such as heads, act differently."""
        return self.plain or type(self).__name__

    def train(self, mode: bool = True) -> Backbone:
        """Sets training mode; frozen parts stay in eval mode."""
        super().train(mode and self._trainable is None)
        for stage in self.trained_stages:
            stage.train(mode)
        return self

    def check_side(self, side: int, setting: str) -> None:
        """Checks the side that a setting gives to images, in pixels.

        Raises:
            ValueError: it is not a multiple of `patch_multiple`, or not `fixed_side`; names the
                setting.
        """
        if self.fixed_side not in (None, side):
            raise ValueError(
                f"--{setting} {side}: as it was built this network takes images of "
                f"{self.fixed_side} x {self.fixed_side} px only."
            )
        if side % self.patch_multiple:
            near = max(1, round(side / self.patch_multiple)) * self.patch_multiple
            raise ValueError(
                f"--{setting} {side} is not a multiple of the patch size {self.patch_multiple}: "
                f"use {near}."
            )

    def side_near(self, side: int) -> int:
        """Returns the largest valid image side up to the given one, in pixels."""
        return self.fixed_side or max(1, side // self.patch_multiple) * self.patch_multiple

    def normalise(self, images: Tensor) -> Tensor:
        """Checks the size and returns images normalised by mean and standard deviation.

        Raises:
            ValueError: sides are not multiples of `patch_multiple`, or not `fixed_side`.
        """
        height, width = images.shape[-2:]
        if self.fixed_side is not None and (height, width) != (self.fixed_side, self.fixed_side):
            raise ValueError(
                f"Images of {height} x {width} px: as it was built this network takes "
                f"{self.fixed_side} x {self.fixed_side} px only."
            )
        if height % self.patch_multiple or width % self.patch_multiple:
            raise ValueError(
                f"Images of {height} x {width} px: both sides must be multiples of "
                f"{self.patch_multiple}. Change --data.image_size, or pad."
            )
        scale = 255 if images.dtype == torch.uint8 else 1
        fresh = images.to(self.mean.dtype, copy=True)  # the only copy: changed in place below
        return fresh.div_(scale).sub_(self.mean).div_(self.std)


class AttentionBackbone(Backbone):
    """A backbone that answers attention requests.

    Attributes:
        attention_heads: number of heads of each block with attention.
        num_prefix: number of tokens before the patches.
        pool: which queries the pooled features train, CLS or the mean of all patches; with `mean`
            the last block's CLS attention is never trained.
    """

    attention_heads: tuple[int, ...]
    num_prefix: int
    pool: Pool

    @property
    def depth(self) -> int:
        """Number of blocks with attention."""
        return len(self.attention_heads)


class GlobalAttentionBackbone(AttentionBackbone):
    """A backbone in which every patch attends to every other; it answers `factors` as well."""

    def token_features(
        self,
        last: Tokens,
        layers: Sequence[Tokens],
        grid: tuple[int, int],
        answers: Sequence[Attention | AttentionFactors],
    ) -> Features:
        """Turns the tokens of a plain ViT into `Features`.

        Args:
            last: tokens after the last block and the final norm.
            layers: the same after each of the chosen blocks.
            grid: `(h, w)`.
            answers: to the attention request.
        """
        return Features(
            pooled=self.pooled(last),
            maps=tuple(as_map(patches, grid) for patches, _ in layers),
            prefix=tuple(prefix for _, prefix in layers),
            strides=self.map_strides,
        ).with_answers(answers)

    def pooled(self, last: Tokens) -> Tensor:
        """Returns one vector per image, `(B, D)`, from the tokens after the final norm."""
        patches, prefix = last
        return prefix[:, 0] if self.pool == "cls" else patches.mean(1)

    def answer(
        self,
        block: int,
        q: Tensor,
        k: Tensor,
        grid: tuple[int, int],
        request: AttentionRequest,
        num_position: int = 0,
    ) -> Attention | AttentionFactors:
        """Answers a request from the queries and keys of a block, see `AttentionFactors`."""
        prefix = self.num_prefix
        factors = AttentionFactors(block, q, k, grid, prefix, num_position, self.has_cls)
        return factors if request.queries == "factors" else factors.rows(request.queries)


def no_prefix(maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Returns the prefix of a network without tokens before the patches."""
    return tuple(each.new_zeros(each.shape[0], 0, each.shape[1]) for each in maps)


def as_map(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Lays patch tokens `(B, h*w, C)` out as a map `(B, C, h, w)`, without a copy."""
    return patches.transpose(1, 2).unflatten(-1, grid)
