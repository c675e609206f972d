"""Builds a segmentation network from the settings: a head, and fusions that bring it attention."""

from __future__ import annotations

from agents.backbone import new_backbone
from agents.protocols import inference_of_test
from config import names
from config.hparams import Hparams
from config.rules import settings_of
from datamodules.seeding import seeded
from models.backbones.base import Backbone
from models.fusions.attention_fusion import AttentionFusion, attention_heads, attention_request
from models.fusions.base import Fusion
from models.heads.base import Head
from models.inference import WHOLE
from models.segmenter import Segmenter
from utils.imports import load


def build_segmenter(hparams: Hparams, backbone: Backbone, num_classes: int) -> Segmenter:
    """Builds the chosen head and fusions on `backbone`.

    Raises:
        ValueError: the backbone takes images of one size only and would see others, or lacks
            the attention that the fusions need; or a block does not exist.
    """
    settings = hparams.segmentation
    side = load(names.PROTOCOLS[settings.protocol]).side
    if backbone.fixed_side not in (None, side):
        raise ValueError(
            f"--backbone.name {hparams.backbone.name} takes images of {backbone.fixed_side} x "
            f"{backbone.fixed_side} px only, and --segmentation.protocol {settings.protocol} "
            "shows whole images of many sizes. Choose a backbone that takes any size."
        )
    seen = inference_of_test(settings)
    if backbone.fixed_side and (seen.window or seen.scales != WHOLE.scales):
        raise ValueError(
            f"--backbone.name {hparams.backbone.name} takes images of {backbone.fixed_side} x "
            f"{backbone.fixed_side} px only: leave --segmentation.test_window and test_scales out."
        )
    fusion, channels = _build_fusion(hparams, backbone, num_classes)
    make_head = load(names.HEADS[settings.head])
    told = settings_of(hparams, "segmentation.head")
    head: Head = make_head(channels, backbone.map_strides, num_classes, **told)
    return Segmenter(backbone, head, fusion)


def _build_fusion(
    hparams: Hparams, backbone: Backbone, num_classes: int
) -> tuple[AttentionFusion, tuple[int, ...]]:
    """Returns the chosen fusions, none by default, and the channels of the maps the head gets."""
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
