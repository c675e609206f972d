"""From the `segmentation.fusion` settings to what brings attention to a head."""

from __future__ import annotations

from agents.backbone import new_backbone
from config import names
from config.hparams import Hparams
from config.rules import settings_of
from datamodules.seeding import seeded
from models.backbones.base import Backbone
from models.fusions.attention_fusion import AttentionFusion, attention_heads, attention_request
from models.fusions.base import Fusion
from utils.imports import load


def build_fusion(
    hparams: Hparams, backbone: Backbone, num_classes: int
) -> tuple[AttentionFusion, tuple[int, ...]]:
    """Builds the chosen fusions around a head on `backbone`.

    Returns:
        Them, none by default, and the channels of the maps that the head gets.

    Raises:
        ValueError: the backbone has not the attention they need; or a block outside the network.
    """
    settings, channels = hparams.segmentation, backbone.map_channels
    if not settings.fusion and not settings.attention_loss:
        return AttentionFusion(), channels
    request = attention_request(
        backbone, settings.attention_blocks, all_pairs="fusion2" in settings.fusion
    )
    heads = attention_heads(backbone, request)
    fusions: dict[str, Fusion] = {}
    for name in settings.fusion:
        options = {
            leaf.removeprefix("fusion_"): value
            for leaf, value in settings_of(hparams, "segmentation.fusion", name).items()
        }
        make = load(names.FUSIONS[name])
        fusions[name] = make(channels, backbone.map_strides, num_classes, heads, **options)
        channels = fusions[name].channels
    twin = None
    if settings.fusion_control == "random_init":
        with seeded(hparams.run.seed):  # the head starts as it would without a control
            twin = new_backbone(hparams)
    return AttentionFusion(fusions, request, settings.fusion_control, twin), channels
