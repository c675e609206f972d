"""Converts `Features` to half-precision tensors for each image, to store, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from models.attention import Attention, AttentionFactors
from models.backbones.base import Backbone, Features

Stored = Mapping[str, Tensor]  # of one image


def pack(features: Features) -> list[dict[str, Tensor]]:
    """Splits the features of B images into B sets of tensors in float16, on the CPU.

    Attention is stored as requested: queries and keys, or the rows of one query.

    Raises:
        ValueError: a value exceeds the range of float16.
    """
    named: dict[str, Tensor] = {"pooled": features.pooled}
    for index, (each, prefix) in enumerate(zip(features.maps, features.prefix, strict=True)):
        named |= {f"map{index}": each, f"prefix{index}": prefix}
    layout: dict[str, Tensor] = {}
    for factors in features.factors or ():
        named |= {f"q{factors.block}": factors.q, f"k{factors.block}": factors.k}
        layout[f"factors{factors.block}"] = torch.tensor(
            [*factors.grid, factors.num_prefix, factors.num_position, factors.has_cls]
        )
    for rows in features.attention or ():
        named[f"rows{rows.block}"] = rows.weights
        layout[f"attention{rows.block}"] = torch.tensor([*rows.grid, rows.num_prefix])
    halves = {name: value.detach().to(torch.float16).cpu() for name, value in named.items()}
    for name, value in halves.items():
        if not value.isfinite().all():
            raise ValueError(
                f"The backbone's {name} exceeds half precision: use --data.feature_cache off."
            )
    return [
        {name: value[row] for name, value in halves.items()} | layout
        for row in range(len(features.pooled))
    ]


def unpack(images: Sequence[Stored], backbone: Backbone) -> Features:
    """Joins the features of images of one size to a batch, in the precision of the backbone."""
    first = images[0]

    def batched(name: str) -> Tensor:
        with torch.autocast(backbone.mean.device.type, enabled=False):
            return torch.stack([image[name] for image in images]).to(backbone.mean)

    answers: list[Attention | AttentionFactors] = []
    for name in first:
        if name.startswith("factors"):
            block = int(name.removeprefix("factors"))
            height, width, prefix, position, cls = first[name].tolist()
            q, k, grid = batched(f"q{block}"), batched(f"k{block}"), (height, width)
            answers.append(AttentionFactors(block, q, k, grid, prefix, position, bool(cls)))
        elif name.startswith("attention"):
            block = int(name.removeprefix("attention"))
            height, width, prefix = first[name].tolist()
            answers.append(Attention(block, batched(f"rows{block}"), (height, width), prefix))
    count = len(backbone.map_strides)
    return Features(
        pooled=batched("pooled"),
        maps=tuple(batched(f"map{index}") for index in range(count)),
        prefix=tuple(batched(f"prefix{index}") for index in range(count)),
        strides=backbone.map_strides,
    ).with_answers(answers)
