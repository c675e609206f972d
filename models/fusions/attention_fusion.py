"""The fusions of a run, and where the attention they read comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from models.attention import AttentionRequest
from models.backbones.base import (
    AttentionBackbone,
    Backbone,
    Features,
    GlobalAttentionBackbone,
)
from models.fusions.base import Fusion
from models.fusions.controls import Group, local, shuffled, uniform
from models.heads.base import Head

Control = Literal["none", "shuffled", "uniform", "local", "random_init"]
_OF_ONE_IMAGE = {"uniform": uniform, "local": local}


class Looks(NamedTuple):
    """What fusions looked at in a pass.

    Attributes:
        class_maps: what the classes of a fusion looked at, `(B, num_classes, h, w)` each.
        edges: the graphs that fusions used, `(B, h*w, h*w)`, and their grids.
    """

    class_maps: Sequence[Tensor] = ()
    edges: Sequence[tuple[Tensor, tuple[int, int]]] = ()


class AttentionFusion(nn.Module):
    """Fusions around a head; without any, the head alone.

    Args:
        fusions: by name; they enrich features in this order, then refine logits in this order.
        request: what the backbone is asked for, None without fusions.
        control: see `models.fusions.controls`; `random_init` reads the attention of `twin`.
        twin: a backbone of the same architecture at random, for that control.
    """

    def __init__(
        self,
        fusions: Mapping[str, Fusion] | None = None,
        request: AttentionRequest | None = None,
        control: Control = "none",
        twin: Backbone | None = None,
    ) -> None:
        super().__init__()
        self.fusions = nn.ModuleDict(fusions)
        self.request = request
        self.control = control
        self.twin = twin
        if twin is not None:
            twin.freeze()

    def features(self, backbone: Backbone, images: Tensor) -> Features:
        """Runs the backbone once, with the attention that is asked for."""
        features: Features = backbone(images, self.request)
        if self.twin is None:
            return features
        with torch.no_grad():
            other = self.twin(images, self.request)
        return replace(features, attention=other.attention, factors=other.factors)

    def controlled(self, groups: list[Group]) -> list[Group]:
        """Takes the truth out of the attention of a batch, where a control asks for it."""
        if self.control in _OF_ONE_IMAGE:
            change = _OF_ONE_IMAGE[self.control]
            return [(positions, change(features)) for positions, features in groups]
        return shuffled(groups) if self.control == "shuffled" else groups

    def controlled_batch(self, features: Features) -> Features:
        """The same for a batch of images of one size."""
        # How many images there are is asked for where it matters only: an exported network takes
        # any number.
        positions = list(range(len(features.pooled))) if self.control == "shuffled" else []
        [(_, found)] = self.controlled([(positions, features)])
        return found

    def forward(self, head: Head, features: Features) -> Tensor:
        """Returns logits `(B, C, h, w)` at the head's own resolution."""
        return self.looking(head, features)[0]

    def looking(self, head: Head, features: Features) -> tuple[Tensor, Looks]:
        """Returns the same logits, and what the fusions looked at to that end."""
        grid = features.factors[0].grid if features.factors else (0, 0)
        # What each fusion got from those before it, and its graph of that.
        given: list[tuple[Features, Tensor | None]] = []
        for fusion in self._each():
            edges = fusion.edges(features)
            given.append((features, edges))
            features = fusion.enrich(features, edges)
        logits, class_maps = head.native(features), []
        for fusion, seen in zip(self._each(), given, strict=True):
            logits, maps = fusion.looking(logits, *seen)
            if maps is not None:
                class_maps.append(maps)
        graphs = [(edges, grid) for _, edges in given if edges is not None]
        return logits, Looks(class_maps, graphs)

    def _each(self) -> list[Fusion]:
        return cast(list[Fusion], list(self.fusions.values()))

    def scalars(self) -> nn.ParameterList:
        """Returns the parameters of all fusions that need a rate of their own."""
        return nn.ParameterList(p for fusion in self._each() for p in fusion.scalars())

    def learnt(self) -> dict[str, float]:
        """Returns what tells whether attention is used, e.g. `fusion2/alpha`."""
        return {
            f"{fusion}/{name}": value
            for fusion, each in zip(self.fusions, self._each(), strict=True)
            for name, value in each.learnt().items()
        }


def attention_request(
    backbone: Backbone, blocks: Sequence[int], all_pairs: bool
) -> AttentionRequest:
    """Returns what a backbone is to be asked for so that fusions can work.

    Args:
        backbone: the run's.
        blocks: whose attention, negative from the end.
        all_pairs: whether attention between patches is needed.

    Raises:
        ValueError: the backbone has no attention, or none between all patches; or a block outside.
    """
    if not isinstance(backbone, AttentionBackbone):
        raise ValueError(
            f"{type(backbone).__name__} has no attention, which --segmentation.fusion and "
            "attention_loss read. Use a ViT, a BoTNet or a Swin, or none of both."
        )
    if isinstance(backbone, GlobalAttentionBackbone):
        request = AttentionRequest(tuple(blocks), "factors")
    elif all_pairs:
        raise ValueError(
            f"--segmentation.fusion fusion2 needs attention between all patches; "
            f"{type(backbone).__name__} attends within windows. Use a ViT or a BoTNet, or fusion1 "
            "and fusion3."
        )
    else:
        request = AttentionRequest(tuple(blocks), "mean")
    request.resolve(backbone.depth, "--segmentation.attention_blocks")
    return request


def attention_heads(backbone: Backbone, request: AttentionRequest) -> tuple[int, ...]:
    """Returns the heads of every block that is asked for."""
    assert isinstance(backbone, AttentionBackbone)
    return tuple(backbone.attention_heads[block] for block in request.resolve(backbone.depth))
