"""DINO's projection head (Caron et al. 2021, section 3.1 and appendix C)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from utils.distributed import gather_batch


class DINOHead(nn.Module):
    """MLP with GELU, L2-normalised bottleneck, weight-normalised linear layer without bias.

    Args:
        in_dim: width of the backbone's pooled features.
        out_dim: K, number of prototypes.
        hidden_dim: width of the MLP.
        bottleneck_dim: width before the last layer.
        layers: linear layers of the MLP.
        norm_last_layer: keep the norms of the prototypes at 1; else they are trained.
        batch_norm: use BatchNorm between the layers of the MLP, an option of the official code.
            Then the logits of an image depend on the other images of the pass.

    Attributes:
        batch_norm: see above.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        layers: int = 3,
        norm_last_layer: bool = True,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.batch_norm = batch_norm
        widths = [in_dim, *[hidden_dim] * (layers - 1), bottleneck_dim]
        modules: list[nn.Module] = []
        for index in range(layers):
            linear = nn.Linear(widths[index], widths[index + 1])
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            modules.append(linear)
            if index + 1 < layers:
                modules += [nn.BatchNorm1d(hidden_dim), nn.GELU()] if batch_norm else [nn.GELU()]
        self.mlp = nn.Sequential(*modules)
        self.last_layer = weight_norm(nn.Linear(bottleneck_dim, out_dim, bias=False))
        norms = self.last_layer.parametrizations.weight.original0
        nn.init.ones_(norms)
        norms.requires_grad_(not norm_last_layer)

    def forward(self, features: Tensor) -> Tensor:
        """`(N, in_dim)` to logits `(N, out_dim)`."""
        logits: Tensor = self.last_layer(F.normalize(self.mlp(features), dim=-1))
        return logits

    def of_views(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Returns the logits `(N, out_dim)` of every view, in one pass.

        N is n; with BatchNorm, which sees the images of all processes, it is their total.

        Args:
            features: pooled, `(n, in_dim)` per view, of the n images of this process.
        """
        seen = [gather_batch(view) for view in features] if self.batch_norm else features
        return list(self(torch.cat(list(seen))).chunk(len(features)))
