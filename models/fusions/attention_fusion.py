"""The fusions of a run, and the attention that they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """What the fusions attended to in a pass.

    Attributes:
        class_maps: maps of the patches that each class attended to, `(B, num_classes, h, w)` each.
        edges: the graphs that fusions used, `(B, h*w, h*w)`, and their grids.
    """

    class_maps: Sequence[Tensor] = ()
    edges: Sequence[tuple[Tensor, tuple[int, int]]] = ()


class AttentionFusion(nn.Module):
    """Fusions around a head; without any, the head alone.

    Args:
        fusions: by name; they enrich features in this order, then refine logits in this order.
        request: the attention to request from the backbone; None without fusions.
        control: see `models.fusions.controls`; `random_init` reads the attention of `twin`.
        twin: a randomly initialised backbone of the same architecture, for that control.
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
        """Runs the backbone once, with the requested attention."""
        features: Features = backbone(images, self.request)
        if self.twin is None:
            return features
        with torch.no_grad():
            other: Features = self.twin(images, self.request)
        return features.with_answers(other.answers)

    def controlled(self, groups: list[Group]) -> list[Group]:
        """Replaces the attention of a batch as the control says."""
        if self.control in _OF_ONE_IMAGE:
            change = _OF_ONE_IMAGE[self.control]
            return [(positions, change(features)) for positions, features in groups]
        return shuffled(groups) if self.control == "shuffled" else groups

    def controlled_batch(self, features: Features) -> Features:
        """Does the same for a batch of images of one size."""
        # Reads the number of images only if it matters: exported networks take any number.
        positions = list(range(len(features.pooled))) if self.control == "shuffled" else []
        [(_, found)] = self.controlled([(positions, features)])
        return found

    def forward(self, head: Head, features: Features) -> Tensor:
        """Returns logits `(B, C, h, w)` at the head's own resolution."""
        return self.looking(head, features)[0]

    def looking(self, head: Head, features: Features) -> tuple[Tensor, Looks]:
        """Returns the same logits, and what the fusions attended to."""
        grid = features.factors[0].grid if features.factors else (0, 0)
        # For each fusion: the features from the previous one, and its graph for them.
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
        """Returns the parameters of all fusions that need their own learning rate."""
        return nn.ParameterList(p for fusion in self._each() for p in fusion.scalars())

    def learnt(self) -> dict[str, float]:
        """Returns values that show whether attention is used, e.g. `fusion2/alpha`."""
        return {
            f"{fusion}/{name}": value
            for fusion, each in zip(self.fusions, self._each(), strict=True)
            for name, value in each.learnt().items()
        }


def attention_request(
    backbone: Backbone, blocks: Sequence[int], all_pairs: bool
) -> AttentionRequest:
    """Returns the attention request that the fusions need.

    Args:
        backbone: the run's.
        blocks: indices of the blocks to read, negative ones from the end.
        all_pairs: whether attention between all patches is needed.

    Raises:
        ValueError: the backbone has no attention, or none between all patches, or no such block.
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
    """Returns the number of heads of every requested block."""
    assert isinstance(backbone, AttentionBackbone)
    return tuple(backbone.attention_heads[block] for block in request.resolve(backbone.depth))
