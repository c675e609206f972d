"""The memory of a training pass, foretold from a few images."""

import pytest
import torch
from torch import nn

from models.backbones.base import Backbone, Features
from models.backbones.resnet import resnet18
from models.backbones.vit import vit_demo, vit_tiny
from models.memory.footprint import bytes_per_image, flops


class Squares(Backbone):
    """Keeps its normalised input (3 values a pixel, for the square) and nothing else."""

    def __init__(self):
        super().__init__(3, (3,), (1,))
        self.net = nn.Identity()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, images, attention=None):
        maps = self.normalise(images).square() + self.factor
        return Features(maps.mean((2, 3)), (maps,), (maps[:, 0, :0],), (1,))

    def stages(self):
        return [self.net]

    def layer_maps(self, images):
        return {}


class SquaresOfParameter(Squares):
    """Keeps the input times a parameter."""

    def forward(self, images, attention=None):
        maps = (self.normalise(images) * self.factor).square()
        return Features(maps.mean((2, 3)), (maps,), (maps[:, 0, :0],), (1,))


def test_what_autograd_keeps_is_counted():
    assert bytes_per_image(Squares(), 8, mixed=False) == 0  # the input needs no gradient
    # The input, for the factor's gradient, and its product with the factor, for the square.
    assert bytes_per_image(SquaresOfParameter(), 8, mixed=False) == 2 * 3 * 8 * 8 * 4


@pytest.mark.parametrize("build", [vit_demo, resnet18])
def test_a_pass_of_many_images_keeps_as_much(build):
    backbone = build(image_size=32).train()
    kept: dict[int, int] = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    totals = []
    for count in (8, 24):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            held = backbone(torch.zeros(count, 3, 32, 32, dtype=torch.uint8))
        totals.append(sum(kept.values()))
        del held
    found = bytes_per_image(backbone, 32, mixed=False)
    assert (totals[1] - totals[0]) / 16 == pytest.approx(found, rel=0.01)
    assert bytes_per_image(backbone, 32, mixed=True) < found


def test_nothing_is_changed_and_a_frozen_backbone_keeps_nothing():
    backbone = resnet18(image_size=32).eval()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    bytes_per_image(backbone, 32, mixed=False)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert not backbone.training
    backbone.freeze()
    assert bytes_per_image(backbone, 32, mixed=False) == 0


def test_a_teacher_stands_for_its_student():
    backbone = vit_demo(image_size=32)
    found = bytes_per_image(backbone, 32, mixed=False)
    backbone.requires_grad_(False)
    assert bytes_per_image(backbone, 32, mixed=False) == found


def test_operations_are_those_of_the_matrices():
    # Patches of 16 px, CLS; a multiplication and an addition each.
    width, tokens, blocks = 192, 4 + 1, 12
    linear = (3 + 1 + 4 + 4) * width**2  # query, key, value; projection; both layers of the MLP
    block = 2 * tokens * linear + 2 * 2 * tokens**2 * width
    embedding = 2 * 4 * (3 * 16**2) * width
    assert flops(vit_tiny(image_size=32), 32).forth == blocks * block + embedding


def test_the_way_back_ends_where_nothing_learns():
    network = vit_tiny(image_size=32)
    forth = flops(network, 32).forth
    assert flops(network, 32).back == 2 * forth
    network.freeze(unfreeze_last=2)
    width, tokens = 192, 4 + 1
    linear = (3 + 1 + 4 + 4) * width**2
    block = 2 * tokens * linear + 2 * 2 * tokens**2 * width
    assert flops(network, 32).back == 2 * 2 * block
    network.freeze()
    assert flops(network, 32).back == 0


def test_counting_operations_changes_nothing():
    network = resnet18(image_size=32).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert flops(network, 64).forth == 4 * flops(network, 32).forth
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
