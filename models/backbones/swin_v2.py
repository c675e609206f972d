"""Swin Transformers V2 from timm (Liu et al. 2022, arXiv 2111.09883)."""

from __future__ import annotations

import torch

from models.backbones.base import StateDict
from models.backbones.swin import merged_where_a_stage_begins
from models.backbones.timm_maps import TimmMaps
from utils.text import count

_TABLE = "relative_coords_table"
_ROUNDED = 5e-3  # absolute error of coordinates stored in 16 bits


class SwinV2(TimmMaps):
    """timm's Swin V2 without classifier; the four stages' outputs are the maps."""

    def fold(self, state: StateDict) -> tuple[StateDict, tuple[str, ...]]:
        """See `Backbone.fold`: renames weights of Swin's official code, drops stored coordinates.

        The bias of a position is an MLP of its coordinates, which timm computes from the window
        sizes, including those of the pretraining. If the windows are the same but the stored
        coordinates differ, the biases would differ too: the coordinates are left in, and the file
        is refused because of them.
        """
        own = dict(self.net.named_buffers())
        others = []
        folded = dict(merged_where_a_stage_begins(state))
        for key in [key for key in folded if key.endswith(_TABLE) and key in own]:
            if folded[key].shape != own[key].shape:
                others.append(folded.pop(key))
            elif torch.allclose(folded[key], own[key], rtol=0, atol=_ROUNDED):
                del folded[key]
        blocks = count(len(others), "block")
        said = f"relative positions of {blocks} computed for windows of another size"
        return folded, ((said,) if others else ())
