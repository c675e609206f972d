"""Which parameters decay, and clipping of every gradient by itself."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from agents.optimizers import set_weight_decay
from config import names
from models.backbones.vit import vit_tiny
from models.fusions.class_queries import ClassQueries
from utils.imports import load
from utils.optim import adamw, clip_each, parameter_groups

BACKBONES = sorted({*names.BACKBONES, *names.BACKBONE_ALIASES.values()} - {names.TIMM})
# What is learnt for a position or a token decays like any matrix (DINO's official code).
EMBEDDINGS = {
    **{name: {"cls_token", "pos_embed"} for name in names.TIMM_VITS},
    "vit_pytorch": {"cls_token", "pos_embedding"},
    "timm/vit_small_patch14_dinov2": {"cls_token", "pos_embed"},
    "timm/vit_base_patch14_dinov2": {"cls_token", "pos_embed"},
    "timm/vit_small_patch16_dinov3": {"cls_token", "reg_token"},
    "timm/vit_base_patch16_dinov3": {"cls_token", "reg_token"},
    "botnet50": {"rel_height", "rel_width"},
}


@pytest.mark.parametrize("name", BACKBONES)
def test_weights_and_embeddings_of_every_backbone_decay_and_nothing_else(name):
    row, member = names.split(name)
    with torch.device("meta"):
        backbone = load(names.BACKBONES[row])(*member, image_size=224)
    named = {parameter: path for path, parameter in backbone.named_parameters()}
    decayed, others = (
        {named[parameter] for parameter in group["params"]}
        for group in parameter_groups({backbone: 1.0}, 1.0, 0.05)
    )
    assert decayed | others == set(named.values())
    products = (nn.Linear, nn.Conv2d)
    matrices = {f"{path}.weight" for path, m in backbone.named_modules() if isinstance(m, products)}
    embeddings = decayed - matrices
    assert matrices <= decayed
    assert {path.rpartition(".")[2] for path in embeddings} == EMBEDDINGS.get(name, set())
    expected = {"weight", "bias"}  # weights of norms
    expected |= {"relative_position_bias_table"} if name.startswith("swin") else set()
    layer_scales = {"gamma", "gamma_1", "gamma_2"}
    assert {path.rpartition(".")[2] for path in others} - layer_scales == expected


def test_a_table_of_biases_does_not_decay_for_having_a_rate_of_its_own():
    # Fusion 3's `bias` is a matrix; in the list of a fusion's scalars it is called "1".
    fusion = ClassQueries((8,), (16,), 3, (2,))
    alone = nn.ParameterList([fusion.queries, fusion.bias])
    first, second, *_ = parameter_groups({alone: 10.0, fusion: 1.0}, 1.0, 0.05)
    assert first["params"] == [fusion.queries]
    assert first["weight_decay"] == 0.05
    assert second["params"] == [fusion.bias]
    assert second["weight_decay"] == 0.0
    assert first["lr"] == second["lr"] == 10.0


def network(dtype: torch.dtype) -> nn.Module:
    """Gradients of many sizes, one of them nothing; a frozen parameter has none."""
    torch.manual_seed(0)
    made = vit_tiny(image_size=32, patch_size=16, depth=2, embed_dim=24).to(dtype)
    for index, parameter in enumerate(made.parameters()):
        parameter.grad = torch.randn_like(parameter) * 10.0 ** (index % 7 - 3)
    first, second, *_ = made.parameters()
    first.grad, second.grad = None, torch.zeros_like(second)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("limit", [0.3, 3.0, 1e6])
def test_gradients_are_clipped_as_one_after_the_other(dtype, limit):
    together, one_by_one = network(dtype), network(dtype)
    clip_each(together.parameters(), limit)
    for parameter in one_by_one.parameters():
        if parameter.grad is not None:
            nn.utils.clip_grad_norm_(parameter, limit)
    for found, expected in zip(together.parameters(), one_by_one.parameters(), strict=True):
        assert (found.grad is None) == (expected.grad is None)
        if found.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-7, atol=0)


def test_nothing_to_clip():
    clip_each(nn.Linear(2, 2).parameters(), 1.0)


def test_the_number_of_operations_does_not_follow_that_of_the_tensors():
    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    made = network(torch.float32)
    with Count() as counted:
        clip_each(made.parameters(), 1.0)
    assert counted.calls < 12 < sum(1 for _ in made.parameters())


def test_a_schedule_of_decay_leaves_out_what_does_not_decay():
    optimizer = adamw(parameter_groups({nn.Linear(3, 2): 1.0}, 0.1, 0.5))
    set_weight_decay(optimizer, 0.3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
