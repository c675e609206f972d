"""Builds from the settings how whole images are resized, labelled and judged in segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from config import names
from config.hparams import Hparams, SegmentationHparams
from datamodules.transforms.segmentation import Protocol
from models.inference import WHOLE, Inference
from utils.imports import load


def build_protocol(hparams: Hparams, scale: float = 1.0) -> Protocol:
    """Builds the chosen protocol.

    Args:
        hparams: resolved settings.
        scale: factor on the side of images, which is `data.image_size` or the recipe's own.
    """
    make = load(names.PROTOCOLS[hparams.segmentation.protocol])
    protocol: Protocol = make(int(hparams.data.image_size), scale)
    return protocol


def protocol_of_test(hparams: Hparams) -> Protocol:
    """Returns how test images are resized and judged: at the largest scale, reduced for others."""
    return build_protocol(hparams, max(hparams.segmentation.test_scales))


def inference_of_test(settings: SegmentationHparams) -> Inference:
    """Returns how test images are seen: whole or in windows, at which scales, mirrored or not."""
    return Inference(
        settings.test_window,
        settings.test_stride,
        tuple(settings.test_scales),
        settings.test_flip,
    )


def judged_by(facts: Mapping[str, Any]) -> list[str]:
    """Returns how numbers were measured: the protocol, and the inference unless plain.

    Args:
        facts: of an agent, or summary.json; both are missing for tasks other than segmentation.
    """
    usual = {"protocol": None, "inference": str(WHOLE)}
    return [str(facts[name]) for name, plain in usual.items() if facts.get(name, plain) != plain]
