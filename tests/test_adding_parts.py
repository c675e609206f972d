"""Adding a part is one file and one line of config/names.py: one of each kind is added and run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from agents.base import Agent
from config import names
from tests.conftest import options, summary, tiny

ROOT = Path(__file__).parents[1]

# Every part in the smallest form its kind allows, as CONTRIBUTING says.
FILE = '''
import torch
import torch.nn.functional as F
from PIL import Image
from pytorch_lightning import Callback
from torch import nn

from datamodules.base import MaskedSource
from datamodules.shapes import CLASSES, generate
from datamodules.voc import voc_files, voc_pairs
from models.backbones.base import Backbone, Features
from models.fusions.base import Fusion
from models.heads.base import SingleMapHead


class Pooling(Backbone):
    """Mean colours of patches, seen through a matrix."""

    def __init__(self, image_size, layers):
        super().__init__(12, (12,), (8,), 8)
        self.net = nn.Conv2d(3, 12, 8, 8)

    def forward(self, images, attention=None):
        maps = self.net(self.normalise(images))
        nothing = maps.new_empty(len(maps), 0, 12)
        return Features(maps.mean((2, 3)), (maps,), (nothing,), (8,))

    def stages(self):
        return [self.net]

    def layer_maps(self, images):
        return {"net": self.net(self.normalise(images))}


class Seen(MaskedSource):
    """Our generated images under another name."""

    classes = CLASSES

    def files(self, split):
        return voc_files(generate(self.root), split)

    def pairs(self, split):
        return voc_pairs(generate(self.root), split)


class Mixing(SingleMapHead):
    """One matrix."""

    def __init__(self, channels, strides, classes):
        super().__init__(channels, strides, classes)
        self.mix = nn.Conv2d(sum(channels), classes, 1)

    def decode(self, x):
        return self.mix(x)


def squared(logits, labels):
    """Squared distance from the one-hot truth, void left out."""
    valid = labels != 255
    truth = F.one_hot(labels.long() * valid, logits.shape[1]).movedim(-1, 1)
    return ((logits.softmax(1) - truth) ** 2).sum(1)[valid].mean()


def momentum(groups):
    return torch.optim.SGD(groups, momentum=0.5)


def halved(step, total, warmup):
    return 1.0 if step < total / 2 else 0.5


class Louder(Fusion):
    """A learnt factor on the logits."""

    def __init__(self, channels, strides, num_classes, heads):
        super().__init__()
        self.channels = channels
        self.factor = nn.Parameter(torch.ones(()))

    def refine(self, logits, features):
        return self.factor * logits

    def learnt(self):
        return {"factor": float(self.factor)}


class Counter(Callback):
    """Counts steps."""

    def on_train_batch_end(self, trainer, pl_module, *rest):
        pl_module.log("train/counted", float(trainer.global_step))
'''


# The lines of config/names.py, there before anything reads it; then runs as on a command line.
START = """
import json, sys
from config import names

names.BACKBONES["pooling"] = "added_parts:Pooling"
names.DATASETS["seen"] = "added_parts:Seen"
names.HEADS["mixing"] = "added_parts:Mixing"
names.FUSIONS["louder"] = "added_parts:Louder"
names.LOSSES["squared"] = "added_parts:squared"
names.OPTIMIZERS["momentum"] = "added_parts:momentum"
names.SCHEDULES["halved"] = "added_parts:halved"
names.CALLBACKS["counter"] = names.Callback("added_parts:Counter", ("segmentation",))

from main import main

for argv in json.loads(sys.argv[1]):
    code = main(argv)
    assert code == 0, code
"""


def test_runs_of_added_parts(tmp_path, shapes_root):
    (tmp_path / "added_parts.py").write_text(FILE)
    added = {
        "backbone.name": "pooling",
        "data.name": "seen",
        "segmentation.head": "mixing",
        "segmentation.loss": "squared",
        "optim.name": "momentum",
        "optim.lr": 0.1,
        "optim.weight_decay": 0,
        "optim.schedule": "halved",
    }
    place = {"task": "segmentation", "data.root": shapes_root, "run.dir": tmp_path / "runs"}
    fused = {"segmentation.fusion": "louder", "run.name": "fused"}
    runs = [
        options({**tiny({**place, "backbone.name": "resnet18"}), **added, "run.name": "added"}),
        options(tiny(place) | fused),
    ]
    done = subprocess.run(
        [sys.executable, "-c", START, json.dumps(runs)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = summary(tmp_path / "runs" / "added")
    assert found["status"] == "finished"
    assert found["train/counted"] == found["steps"]
    assert found["train/lr"] == pytest.approx(0.05)
    settings = yaml.safe_load((tmp_path / "runs" / "added" / "hparams.yaml").read_text())
    assert settings["backbone"]["name"] == "pooling"
    assert summary(tmp_path / "runs" / "fused")["fusion/louder/factor"] != 1


class Unfinished(Agent):
    """A method that lacks two of its methods."""

    def in_words(self, summary):
        return []


def test_an_agent_that_lacks_a_method_is_named_at_the_start(monkeypatch, train, capsys):
    monkeypatch.setitem(names.TASKS, "dino", f"{__name__}:Unfinished")
    code, folder = train("bad", task="dino")
    assert code == 2
    assert "Unfinished lacks build, data" in capsys.readouterr().err.replace("\n", " ")
    assert not folder.exists()


@pytest.mark.parametrize("target", ["agents.nowhere:X", "agents.dino:Nothing"])
def test_a_line_that_names_nothing(target, monkeypatch, train, capsys):
    monkeypatch.setitem(names.TASKS, "dino", target)
    assert train("bad", task="dino")[0] == 2
    assert f"config/names.py names {target}" in capsys.readouterr().err.replace("\n", " ")
