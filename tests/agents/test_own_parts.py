"""Parts that a notebook adds, at any time, and those that it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from pytorch_lightning import Callback
from torch import optim

from agents import Hparams, Trainer, add_callback, add_part, load_run
from config import names
from config.errors import ConfigError
from config.rules import no_effect
from config.settings_tree import read_tables_anew
from datamodules.listing import image_files
from datamodules.sources import ImageSource, MaskedSource
from models.backbones.base import AttentionBackbone
from models.backbones.resnet import resnet18
from models.backbones.vit import vit_demo

TABLES: tuple[dict[str, Any], ...] = (
    names.BACKBONES,
    names.DATASETS,
    names.OPTIMIZERS,
    names.CALLBACKS,
)


@pytest.fixture(autouse=True)
def tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leaves the tables as they were."""
    before = [dict(table) for table in TABLES]
    monkeypatch.setattr(names, "WITHOUT_MASKS", names.WITHOUT_MASKS)
    monkeypatch.setattr(names, "WITHOUT_ATTENTION", names.WITHOUT_ATTENTION)
    yield
    for table, rows in zip(TABLES, before, strict=True):
        table.clear()
        table.update(rows)
    monkeypatch.undo()
    read_tables_anew()


class Photos(ImageSource):
    """A folder."""

    def files(self, split):
        return image_files(self.root) if split == "train" else []


class Masked(MaskedSource, Photos):
    """Photographs that have masks in the meantime."""

    classes = ("background", "thing")

    def pairs(self, split):
        return []


class Steps(Callback):
    """Counts."""

    counted: ClassVar[list[int]] = []

    def on_train_batch_end(self, trainer, *_):
        self.counted.append(trainer.global_step)


def small_resnet(*, image_size, layers):
    return resnet18(image_size=image_size, layers=layers, stem="cifar")


def small_vit(*, image_size, layers) -> AttentionBackbone:
    return vit_demo(image_size=image_size, layers=layers, depth=2, embed_dim=24, num_heads=2)


def momentum(groups):
    return optim.SGD(groups, momentum=0.9)


def test_parts_are_added_after_settings_were_looked_at(train, tmp_path, image_folder):
    hparams = Hparams()
    hparams.backbone.name = "small_vit"
    with pytest.raises(ConfigError, match=r"backbone\.name small_vit"):
        Trainer(hparams)
    add_part("backbone.name", "small_vit", small_vit)
    add_part("data.name", "my_photos", Photos)
    add_part("optim.name", "momentum", momentum)
    add_callback("steps", Steps, ["barlow_twins"])
    Steps.counted.clear()
    own = {"backbone.name": "small_vit", "data.name": "my_photos", "optim.name": "momentum"}
    sizes = {f"backbone.{name}": ... for name in ("patch_size", "depth", "embed_dim")}
    own |= {"data.root": image_folder, "optim.lr": 0.1, "optim.weight_decay": 0} | sizes
    own["callbacks.attention_maps.enabled"] = "true"
    code, folder = train(**own)
    assert code == 0
    assert Steps.counted == [1, 2, 3, 4]
    assert list(folder.glob("figures/attention_maps/*/*/step-*.png"))
    assert len(load_run(folder).backbone.state_dict()) > 10


def test_what_an_added_part_cannot_do_is_known():
    add_part("backbone.name", "small_resnet", small_resnet)
    add_part("data.name", "my_photos", Photos)
    hparams = Hparams()
    hparams.backbone.name, hparams.data.name = "small_resnet", "my_photos"
    assert "resnet" in str(no_effect(hparams, "callbacks.attention_maps.enabled"))
    assert "my_photos" in str(no_effect(hparams, "callbacks.dense_knn.enabled"))
    hparams.backbone.name = "vit_demo"
    assert no_effect(hparams, "callbacks.attention_maps.enabled") is None


def test_a_cell_that_is_run_again_renews_its_part():
    for _ in range(2):
        add_part("optim.name", "momentum", momentum)
        add_callback("steps", Steps)
    assert names.CALLBACKS["steps"].tasks == names.PRETRAINING


def test_what_a_cell_says_of_its_part_when_it_is_run_again_counts(monkeypatch):
    hparams = Hparams()
    hparams.backbone.name, hparams.data.name = "small_vit", "my_photos"
    settings = ("callbacks.attention_maps.enabled", "callbacks.dense_knn.enabled")
    with monkeypatch.context() as before:
        before.delitem(small_vit.__annotations__, "return")
        add_part("backbone.name", "small_vit", small_vit)
        add_part("data.name", "my_photos", Photos)
    assert all(no_effect(hparams, path) for path in settings)
    monkeypatch.setattr(f"{__name__}.Photos", type("Photos", (Masked,), {"__module__": __name__}))
    add_part("backbone.name", "small_vit", small_vit)
    add_part("data.name", "my_photos", Photos)
    assert not any(no_effect(hparams, path) for path in settings)


@pytest.mark.parametrize(
    ("setting", "name", "part", "words"),
    [
        ("backbone.nam", "mine", small_vit, "expected one of backbone.name"),
        ("backbone.name", "resnet18", small_vit, "exists already"),
        ("backbone.name", "convnext_tiny", small_vit, "exists already"),
        ("backbone.name", "my/net", small_vit, "expected a name such as"),
        ("optim.name", "mine", lambda groups: None, "Define it at the top"),
        ("data.name", "mine", small_vit, "subclass of ImageSource"),
    ],
)
def test_parts_that_are_none(setting, name, part, words):
    with pytest.raises(ValueError, match=words):
        add_part(setting, name, part)


def test_callbacks_that_are_none():
    with pytest.raises(ValueError, match="subclass of Lightning's Callback"):
        add_callback("mine", Photos)
    with pytest.raises(ValueError, match="no task dinno"):
        add_callback("mine", Steps, ["dinno"])
