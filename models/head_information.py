"""A label-free term for any self-supervised loss that makes attention heads differ.

It rewards the heads of a block for attending to different patches: the mutual information
I(head; patch) of their attention (`models.losses.attention.head_information`), as a share of its
maximum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from models.attention import AttentionRequest
from models.backbones.base import AttentionBackbone, Backbone
from models.losses.attention import head_information


class HeadInformation:
    """Adds -weight * information to a loss; with weight 0 it requests and adds nothing.

    The information of each image is one more column of its pooled features, so that it passes
    through chunks, recomputation and gathering like them.

    Args:
        backbone: the network with the heads.
        weight: of the term.
        blocks: indices of the blocks, negative ones from the end.

    Raises:
        ValueError: the weight is not 0, and the backbone has fewer than two heads or no such block.
    """

    def __init__(self, backbone: Backbone, weight: float, blocks: Sequence[int]) -> None:
        self.weight = weight
        self.request: AttentionRequest | None = None
        if not weight:
            return
        if not isinstance(backbone, AttentionBackbone):
            raise ValueError(
                f"--head_information.weight: {type(backbone).__name__} has no attention heads."
            )
        self.request = AttentionRequest(tuple(blocks), backbone.pool)
        read = self.request.resolve(backbone.depth, "--head_information.blocks")
        if any(backbone.attention_heads[block] < 2 for block in read):
            raise ValueError(
                "--head_information.weight: a single head has no other to differ from."
            )

    def pooled(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Returns pooled features `(n, D)`, with the information as column D + 1 if it counts."""
        features = backbone(images, self.request)
        pooled: Tensor = features.pooled
        if self.request is None:
            return pooled
        maps = [attention.patch_maps()[:, :, 0].flatten(2) for attention in features.attention]
        mutual_information = torch.stack([head_information(each) for each in maps]).mean(0)
        return torch.cat([pooled, mutual_information[:, None].to(pooled.dtype)], 1)

    def split(self, views: Sequence[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """Removes the column again.

        Returns:
            Features `(N, D)` of every view, and the mean information; None if it does not count.
        """
        if self.request is None:
            return list(views), None
        mutual_information = torch.cat([view[:, -1] for view in views]).mean()
        return [view[:, :-1] for view in views], mutual_information

    def added(
        self, loss: Tensor, mutual_information: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Adds the term to a loss if it counts, and returns the information to log."""
        if mutual_information is None:
            return loss, {}
        return loss - self.weight * mutual_information, {
            "head_information": mutual_information.detach()
        }

    def without(self, total: Tensor, named: Mapping[str, Tensor | float]) -> Tensor:
        """Returns the method's own loss from the results of `added`; without gradient."""
        return total.detach() + self.weight * named.get("head_information", 0.0)
