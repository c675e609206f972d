"""Receptive fields of known networks are what they must be; looking leaves no trace."""

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks.effective_receptive_field import (
    area_ratio,
    centre,
    centroid,
    draw,
    numbers,
    radius,
    receptive_fields,
    square_side,
    without_parameter_gradients,
)
from callbacks.inspection import inspecting
from models.backbones.resnet import resnet18
from models.backbones.vit import vit_tiny
from models.backbones.vit_pytorch import vit_pytorch
from utils import figures

SIZES = {"image_size": 48, "patch_size": 16, "depth": 3, "embed_dim": 24}


def images(count: int = 4, size: int = 48) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def conv(kernel: int, stride: int = 1, inputs: int = 3) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(inputs, 2, kernel, stride, padding=kernel // 2)


def test_one_convolution_shows_its_weights():
    layer = conv(5)
    field = receptive_fields(lambda x: {"conv": layer(x)}, ["conv"], images(2, 15))["conv"]
    expected = layer.weight.detach().sum(0).abs().sum(0)
    torch.testing.assert_close(field[5:10, 5:10], expected)
    assert field.sum() == pytest.approx(expected.sum().item())


def test_a_network_that_has_exploded_has_no_field():
    with pytest.raises(ValueError, match="not all finite numbers"):
        receptive_fields(lambda x: {"y": x * torch.inf}, ["y"], images(2, 15))


def test_two_convolutions_reach_one_less_than_their_sum():
    first, second = conv(5), conv(5, inputs=2)
    field = receptive_fields(lambda x: {"y": second(first(x))}, ["y"], images(2, 21))["y"]
    reached = field.nonzero()
    assert reached.min(0).values.tolist() == [6, 6]
    assert reached.max(0).values.tolist() == [14, 14]
    assert square_side(field, 1.0) == 9


@pytest.mark.parametrize(("size", "stride"), [(15, 3), (21, 3), (35, 5)])
def test_a_strided_convolution_lies_in_the_middle(size, stride):
    layer = nn.Conv2d(3, 2, stride, stride)
    field = receptive_fields(lambda x: {"y": layer(x)}, ["y"], images(1, size))["y"]
    middle = size // 2
    reached = field.nonzero()
    assert reached.min(0).values.tolist() == [middle - stride // 2] * 2
    assert reached.max(0).values.tolist() == [middle + stride // 2] * 2


def test_an_even_grid_takes_the_four_in_the_middle():
    maps = torch.arange(32.0).reshape(1, 2, 4, 4)
    assert centre(maps).item() == maps[0, :, 1:3, 1:3].mean((1, 2)).sum()
    assert centre(maps[..., :3]).item() == maps[0, :, 1:3, 1:2].mean((1, 2)).sum()
    layer = nn.Conv2d(3, 2, 4, 4)
    field = receptive_fields(lambda x: {"y": layer(x)}, ["y"], images(1, 16))["y"]
    assert field.nonzero().min() == 4
    assert field.nonzero().max() == 11


def test_the_absolute_value_is_taken_per_image():
    # Two images with opposite gradients: their mean is zero, their field is not.
    signs = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    field = receptive_fields(lambda x: {"y": x * signs}, ["y"], images(2, 5))["y"]
    assert field[2, 2] == 3


def test_channel_sums_after_a_fresh_norm_have_no_gradient_but_the_stream_has():
    torch.manual_seed(0)
    backbone = vit_tiny(**SIZES).eval()

    def both(x: Tensor) -> dict[str, Tensor]:
        return {"stream": backbone.layer_maps(x)["blocks.2"], "normed": backbone(x).maps[0]}

    found = receptive_fields(both, ["stream", "normed"], images(2))
    assert found["normed"].max() < 1e-5 * found["stream"].max()


@pytest.mark.parametrize("make", [vit_tiny, vit_pytorch])
def test_a_transformer_block_sees_everything(make):
    torch.manual_seed(0)
    backbone = make(**SIZES, num_heads=3).eval()
    maps = backbone.layer_maps(images(2))
    assert len(maps) == 3
    assert {tuple(each.shape) for each in maps.values()} == {(2, 24, 3, 3)}
    field = receptive_fields(backbone.layer_maps, list(maps)[:1], images(2))
    assert (next(iter(field.values())) > 0).all()


@pytest.mark.parametrize("make", [vit_tiny, vit_pytorch, resnet18])
def test_layer_maps_end_in_what_the_network_says(make):
    torch.manual_seed(0)
    settings = SIZES if make is not resnet18 else {"image_size": 48}
    if make is vit_pytorch:
        settings = settings | {"num_heads": 3}
    backbone = make(**settings).eval()
    last = list(backbone.layer_maps(images(2)).values())[-1]
    expected = backbone(images(2)).maps[-1]
    if make is vit_tiny:
        last = backbone.net.norm(last.movedim(1, -1)).movedim(-1, 1)
    elif make is vit_pytorch:
        last = backbone.net.transformer.norm(last.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(last, expected)


def test_one_backward_pass_gives_the_same_gradients_on_fewer_images():
    torch.manual_seed(0)
    backbone = vit_tiny(**SIZES).eval()
    layers = ["blocks.0", "blocks.2"]
    stratified = receptive_fields(backbone.layer_maps, layers, images(4), exact=False)
    for number, layer in enumerate(layers):
        exact = receptive_fields(backbone.layer_maps, [layer], images(4)[number::2])[layer]
        torch.testing.assert_close(stratified[layer], exact)


def test_images_are_taken_a_few_at_a_time_without_changing_the_mean():
    torch.manual_seed(0)
    backbone = vit_tiny(**SIZES).eval()
    whole = receptive_fields(backbone.layer_maps, ["blocks.1"], images(6))["blocks.1"]
    single = [
        receptive_fields(backbone.layer_maps, ["blocks.1"], image[None])["blocks.1"]
        for image in images(6)
    ]
    torch.testing.assert_close(whole, torch.stack(single).mean(0))


def test_a_model_is_as_before():
    backbone = vit_tiny(**SIZES, drop_path=0.5).train()
    backbone.net.blocks[0].requires_grad_(False)
    before = [(p.requires_grad, p.grad) for p in backbone.parameters()]
    flags = [module.training for module in backbone.modules()]
    with inspecting(backbone), without_parameter_gradients(backbone):
        receptive_fields(backbone.layer_maps, ["blocks.2"], images(2))
    assert [(p.requires_grad, p.grad) for p in backbone.parameters()] == before
    assert [module.training for module in backbone.modules()] == flags
    assert not any(p.grad is not None for p in backbone.parameters())


class Looks(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = vit_tiny(**SIZES)
        self.found: dict[str, Tensor] = {}

    def validation_step(self, batch, batch_idx):
        assert torch.is_inference_mode_enabled()
        self.found = receptive_fields(self.backbone.layer_maps, ["blocks.1"], batch)


def test_it_works_inside_lightnings_validation():
    torch.manual_seed(0)
    module = Looks()
    trainer = pl.Trainer(logger=False, enable_progress_bar=False, accelerator="cpu", barebones=True)
    trainer.validate(module, DataLoader(images(2), batch_size=2), verbose=False)
    expected = receptive_fields(module.backbone.eval().layer_maps, ["blocks.1"], images(2))
    torch.testing.assert_close(module.found["blocks.1"], expected["blocks.1"])


def test_sizes_of_known_fields():
    point = torch.zeros(15, 15)
    point[7, 7] = 1
    assert radius(point) == 0
    assert square_side(point, 0.99) == 1
    flat = torch.ones(20, 20)
    assert [square_side(flat, share) for share in (0.2, 0.3, 0.5, 0.99)] == [10, 12, 16, 20]
    assert area_ratio(flat, 0.99) == 1
    grid = torch.arange(101) - 50.0
    gaussian = torch.exp(-(grid[:, None] ** 2 + grid[None] ** 2) / (2 * 8.0**2))
    assert radius(gaussian) == pytest.approx(8 * 2**0.5, rel=1e-3)
    # Scale-free.
    assert numbers({"a": gaussian}) == pytest.approx(numbers({"a": gaussian * 1e-9}), rel=1e-5)
    assert set(numbers({"a": flat})) == {
        "erf/a/radius_px",
        *(f"erf/a/area_{p}%" for p in (20, 30, 50, 99)),
    }


def test_a_field_off_the_middle_is_measured_around_its_own_centroid():
    # A bump of known width, moved about: neither radius nor square may follow the distance.
    grid = torch.arange(64.0)
    for row, column in ((31.5, 31.5), (24, 24), (16, 40)):
        bump = torch.exp(-((grid[:, None] - row) ** 2 + (grid[None] - column) ** 2) / (2 * 3.0**2))
        assert centroid(bump) == pytest.approx((row, column), abs=1e-2)
        assert radius(bump) == pytest.approx(3 * 2**0.5, rel=1e-2)
        # Half of a Gaussian lies within 1.05 deviations on either side (0.5^0.5 on each axis): 6.3
        # pixels, or the next whole number that the middle, on a pixel or an edge, allows.
        assert square_side(bump, 0.5) == (8 if row == 31.5 else 7)
    corner = torch.zeros(10, 10)
    corner[:3, :3] = 1
    assert (square_side(corner, 1.0), area_ratio(corner, 1.0)) == (3, 0.09)
    assert centroid(torch.zeros(4, 6)) == (1.5, 2.5)


@pytest.mark.parametrize(("size", "middle"), [(49, 24), (56, 24)])
def test_the_field_of_a_strided_convolution_has_the_radius_of_its_kernel(size, middle):
    # 7 units at 0, 8, … 48 of each axis: the central one looks at 24, whatever the image's middle.
    layer = nn.Conv2d(3, 1, 3, stride=8, padding=1)
    nn.init.ones_(layer.weight)
    field = receptive_fields(lambda x: {"y": layer(x)}, ["y"], images(1, size))["y"]
    assert centroid(field) == pytest.approx((middle, middle))
    assert radius(field) == pytest.approx((4 / 3) ** 0.5)
    assert square_side(field, 1.0) == 3
    assert area_ratio(field, 1.0) == pytest.approx(9 / size**2)
    figure = draw({"y": field}, "title")
    (square,) = figure.axes[0].patches
    assert square.get_center().tolist() == [middle, middle]  # type: ignore[attr-defined]
    figures.close(figure)


def test_the_figure_says_what_it_shows():
    figure = draw({"blocks.0": torch.rand(9, 9), "blocks.3": torch.zeros(9, 9)}, "title")
    assert figure.axes[0].get_title().startswith("block 1 (blocks.0)\nradius")
    assert figure.axes[0].images[0].get_clim() == (0, 1)
    assert "maximum" in figure.axes[-1].get_ylabel()
    figures.close(figure)


ON = {"callbacks__effective_receptive_field__enabled": "true"}


def test_unknown_layers_stop_before_training(train, capsys):
    words = ["--callbacks.effective_receptive_field.layers", "blocks.9"]
    assert train("unknown", *words, **ON)[0] == 2
    assert "this network has blocks.0 … blocks.1" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["barlow_twins", "segmentation"])
def test_every_task_draws_named_layers(train, task):
    words = ["--callbacks.effective_receptive_field.layers", "blocks.1"]
    code, folder = train("drawn", *words, task=task, **ON)
    assert code == 0
    assert len(list((folder / "figures" / "effective_receptive_field").glob("*.png"))) == 2
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    assert "erf/blocks.1/radius_px" in header
    assert "erf/blocks.0/radius_px" not in header
