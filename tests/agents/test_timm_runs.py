"""A network of timm is pretrained, looked into, probed, segmented with, and taken along."""

from __future__ import annotations

import pytest
import timm
import torch

from agents.backbone import new_backbone
from config import names
from config.hparams import Hparams
from config.parsing import parse
from config.resolve import resolve
from config.settings_tree import update
from config.validation import check
from main import main
from tests.conftest import assert_same, summary

LOOKS = {
    "callbacks__attention_maps__enabled": True,
    "callbacks__attention_quality__enabled": True,
    "callbacks__effective_receptive_field__enabled": True,
    "callbacks__feature_maps__enabled": True,
}


@pytest.mark.parametrize("model", ["test_vit3", "xcit_nano_12_p16_224", "test_convnext"])
def test_a_network_of_timm_goes_through_everything(train, model, capsys):
    name = {"backbone__name": f"timm/{model}", "backbone__patch_size": ...}
    code, folder = train(
        "pretrained", **name, **LOOKS, trainer__max_epochs=1, trainer__chunk_size=4
    )
    assert code == 0
    maps = (folder / "figures" / "attention_maps").exists()
    assert maps == (model == "test_vit3")
    runs = {"backbone__name": ..., "backbone__patch_size": ..., "backbone__depth": ...}
    told = {**runs, "backbone__embed_dim": ..., "backbone__weights": "run:pretrained"}
    code, probe = train("probe", task="linear_probe", **told)
    assert code == 0
    assert 0 <= summary(probe)["test/linear_accuracy"] <= 1
    fixed = {"data__views": "fixed", "backbone__freeze": True, "data__batch_size": 4}
    code, segmented = train("segmented", task="segmentation", **told, **fixed)
    if model.startswith("xcit"):
        assert code == 2
        assert "takes images of 32 x 32 px only" in " ".join(capsys.readouterr().err.split())
    else:
        assert code == 0
        assert (segmented.parent / ".cache").is_dir()
        files = (each / "checkpoints" / "backbone.pth" for each in (folder, segmented))
        assert_same(*(torch.load(file, weights_only=True) for file in files))  # frozen
    capsys.readouterr()
    assert main(["--export", "pretrained", "--run.dir", str(folder.parent)]) == 0
    assert f'timm.create_model("{model}", num_classes=0' in capsys.readouterr().out


def test_fusions_take_the_attention_of_a_timm_network(train):
    code, _ = train(
        task="segmentation",
        backbone__name="timm/test_vit3",
        backbone__patch_size=...,
        backbone__freeze=True,
        segmentation__fusion=("fusion1", "fusion2"),
        trainer__max_epochs=1,
    )
    assert code == 0


def test_unknown_models_are_answered_with_the_nearest(train, capsys):
    code, _ = train(backbone__name="timm/convnext_tinny", backbone__patch_size=...)
    assert code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "Did you mean timm/convnext_tiny" in said
    code, _ = train(backbone__name="convnext_tinny")
    assert code == 2
    assert "Did you mean convnext_tiny?" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", names.BACKBONE_ALIASES)
def test_short_names_stand_for_models_of_timm(name):
    hparams = parse(["--backbone.name", name]).hparams
    assert hparams.backbone.name == names.BACKBONE_ALIASES[name]
    assert timm.is_model_pretrained(hparams.backbone.name.partition("/")[2])


def test_settings_of_a_family_reach_each_of_its_members():
    words = ["--backbone.name", "timm/resnet26", "--backbone.output_stride", "8"]
    assert parse(words).hparams.backbone.output_stride == 8


def test_a_short_name_is_built():
    settings = {"backbone": {"name": "dinov2_small"}, "data": {"image_size": 112}}
    backbone = new_backbone(resolve(check(update(Hparams(), settings, "x"))))
    assert (backbone.embed_dim, backbone.map_strides) == (384, (14,))
    assert "pretrained" in backbone.sources
