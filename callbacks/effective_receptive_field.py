"""Shows which pixels the central unit of a layer depends on (Luo et al. 2016, arXiv 1701.04128)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn

from callbacks.epochs import last_epoch
from callbacks.frozen import BackbonePicture, cached
from callbacks.inspection import backbone_of, held_out_examples, inspecting
from utils import figures
from utils.logging import log_after_step, log_figure
from utils.spacing import evenly_to_last
from utils.text import count

LayerMaps = Callable[[Tensor], Mapping[str, Tensor]]

AREAS = (0.2, 0.3, 0.5, 0.99)  # shares of the field whose area is reported (Ding et al. 2022)
_IMAGES_AT_ONCE = 4


class EffectiveReceptiveField(BackbonePicture):
    """Draws the effective receptive field of some layers, and logs its size.

    During training each image is used for one layer only, which takes one backward pass for any
    number of layers; at the end each image is used for all layers.

    Args:
        every_n_epochs: when to draw.
        num_images: images averaged over, of the validation set if there is one.
        num_layers: number of layers, evenly over the depth.
        layers: names of layers instead.
    """

    def __init__(
        self,
        every_n_epochs: int,
        num_images: int,
        num_layers: int = 4,
        layers: list[str] | None = None,
    ) -> None:
        super().__init__(every_n_epochs)
        self.num_images = num_images
        self.num_layers = num_layers
        self.layers = list(layers or [])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the layers before training starts.

        Raises:
            ValueError: a layer that the network does not have.
        """
        if stage != "fit":
            return
        backbone = backbone_of(pl_module)
        size = backbone.side_near(2 * max(backbone.patch_multiple, *backbone.map_strides))
        with inspecting(pl_module):
            # The module names the device that will train already, and lies on the host yet.
            example = torch.zeros(1, 3, size, size, device=backbone.mean.device)
            known = list(backbone.layer_maps(example))
        unknown = [name for name in self.layers if name not in known]
        if unknown:
            raise ValueError(
                f"--callbacks.effective_receptive_field.layers {unknown[0]}: this network has "
                f"{known[0]} … {known[-1]}."
            )
        self.layers = self.layers or evenly_to_last(known, self.num_layers)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws."""
        backbone = backbone_of(pl_module)
        if not self.is_due(trainer, backbone):
            return
        images, split = held_out_examples(trainer, backbone, self.num_images)
        side = images.shape[-1]
        final = last_epoch(trainer) or backbone.frozen
        exact = final or len(images) < len(self.layers)

        def look() -> dict[str, Tensor]:
            with (
                inspecting(pl_module),
                without_parameter_gradients(backbone),
            ):
                shown = images.to(pl_module.device)
                return receptive_fields(backbone.layer_maps, self.layers, shown, exact)

        facts = {"layers": self.layers}
        fields = cached(trainer, backbone, "effective receptive fields", facts, images, look)
        how = "all images for every layer" if exact else "each image for one layer"
        title = (
            "Effective receptive field of the central unit, "
            f"{count(len(images), f'{split} image')} of {side} px ({how}), "
            f"step {trainer.global_step}"
        )
        log_after_step(trainer, numbers(fields))
        arrays = {name: field.numpy() for name, field in fields.items()}
        log_figure(trainer, "effective_receptive_field", draw(fields, title), arrays)


@contextmanager
def without_parameter_gradients(module: nn.Module) -> Iterator[None]:
    """Saves the memory that only gradients of parameters would need."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def receptive_fields(
    layer_maps: LayerMaps, layers: Sequence[str], images: Tensor, exact: bool = True
) -> dict[str, Tensor]:
    """Computes the mean over images of |d centre / d pixel|, summed over colours.

    The absolute value is taken per image: averaging signed gradients would lose mass. Works inside
    Lightning's validation, which runs in inference mode.

    Args:
        layer_maps: images to a map `(B, C, h, w)` per layer.
        layers: which of them.
        images: `(B, 3, H, W)`, uint8 or float in 0 … 1.
        exact: use every image for every layer, with a backward pass for each layer; otherwise use
            image i for layer i % len(layers), in one backward pass: the same on fewer images.

    Returns:
        By layer, `(H, W)` on the CPU.

    Raises:
        ValueError: a gradient is not finite, as in a network whose weights have exploded.
    """
    counts = dict.fromkeys(layers, 0)
    with torch.inference_mode(False), torch.enable_grad():
        sums = {name: torch.zeros(images.shape[-2:]) for name in layers}
        pixels = images.clone().float() / 255 if images.dtype == torch.uint8 else images.clone()
        for part in pixels.split(_IMAGES_AT_ONCE if exact else len(layers)):
            part = part.clone().requires_grad_()
            maps = layer_maps(part)
            chosen = [slice(None) if exact else slice(k, k + 1) for k in range(len(layers))]
            centres = [centre(maps[name])[k].sum() for name, k in zip(layers, chosen, strict=True)]
            scalars = centres if exact else [torch.stack(centres).sum()]
            gradients = [torch.autograd.grad(s, part, retain_graph=True)[0] for s in scalars]
            gradients = gradients if exact else gradients * len(layers)
            for name, gradient, rows in zip(layers, gradients, chosen, strict=True):
                sums[name] += gradient[rows].abs().sum((0, 1)).float().cpu()
                counts[name] += len(gradient[rows])
    if not all(bool(field.isfinite().all()) for field in sums.values()):
        raise ValueError("effective_receptive_field: the gradients are not all finite numbers.")
    return {name: sums[name] / max(1, counts[name]) for name in layers}


def centre(maps: Tensor) -> Tensor:
    """Sums the channels of the central unit of `(B, C, h, w)`.

    An even side has no central unit: the mean of the two (or four) in the middle is taken.

    Returns:
        `(B,)`.
    """
    height, width = maps.shape[-2:]
    rows = slice((height - 1) // 2, height // 2 + 1)
    columns = slice((width - 1) // 2, width // 2 + 1)
    return maps[:, :, rows, columns].mean((2, 3)).sum(1)


def centroid(field: Tensor) -> tuple[float, float]:
    """Returns the mean row and column of a field `(H, W)`, weighted by it; in pixels from 0.

    The field of a central unit need not lie around the middle of the image: with the usual padding
    the units of a strided network are centred at multiples of the stride.
    """
    weights = field.double()
    total = weights.sum()
    if total <= 0:
        return (field.shape[0] - 1) / 2, (field.shape[1] - 1) / 2
    row, column = (
        float((weights.sum(1 - axis) * torch.arange(side)).sum() / total)
        for axis, side in enumerate(field.shape)
    )
    return row, column


def square_centre(field: Tensor) -> tuple[float, float]:
    """Returns the centroid rounded to half pixels, so that squares consist of whole pixels."""
    row, column = centroid(field)
    return round(2 * row) / 2, round(2 * column) / 2


def _half_sides(field: Tensor) -> Tensor:
    # Half the side of the smallest square around the centroid that holds each pixel's centre.
    y, x = (
        torch.arange(side, dtype=torch.float64) - middle
        for side, middle in zip(field.shape, square_centre(field), strict=True)
    )
    return torch.maximum(y.abs()[:, None], x.abs()[None])


def _enough(field: Tensor, share: float) -> float:
    # Half the side, from centre to centre, of the smallest square with that share.
    distance, order = _half_sides(field).flatten().sort()
    mass = field.flatten().double()[order].cumsum(0)
    # Despite rounding, the required share must not exceed the total.
    return float(distance[int((mass >= share * mass[-1] * (1 - 1e-12)).nonzero()[0])])


def square_side(field: Tensor, share: float) -> int:
    """Returns the side in pixels of the smallest square with at least `share` of a field.

    Args:
        field: `(H, W)`, not negative; the square lies around its centroid.
        share: in 0 … 1.
    """
    return round(2 * _enough(field, share)) + 1


def area_ratio(field: Tensor, share: float) -> float:
    """Returns the part of the image inside that square (compare RepLKNet, Ding et al. 2022).

    Measured on the field itself: RepLKNet's own number depends on the scale of the gradient.
    """
    inside = _half_sides(field) <= _enough(field, share)
    return float(inside.double().mean())


def radius(field: Tensor) -> float:
    """Returns the root mean square distance from the centroid in pixels, weighted by the field."""
    y, x = (
        torch.arange(side, dtype=torch.float64) - middle
        for side, middle in zip(field.shape, centroid(field), strict=True)
    )
    squared = y[:, None] ** 2 + x[None] ** 2
    return float(((field * squared).sum() / field.double().sum().clamp(min=1e-30)).sqrt())


def numbers(fields: Mapping[str, Tensor]) -> dict[str, float]:
    """Returns radius and area ratios by the name they are logged under."""
    found = {}
    for name, field in fields.items():
        found[f"erf/{name}/radius_px"] = radius(field)
        for share in AREAS:
            found[f"erf/{name}/area_{share:.0%}"] = area_ratio(field, share)
    return found


def in_words(layer: str) -> str:
    """Returns the name of a layer in pictures, which number the blocks of a ViT from 1."""
    block = re.fullmatch(r"blocks\.(\d+)", layer)
    return f"block {int(block[1]) + 1} ({layer})" if block else layer


def draw(fields: Mapping[str, Tensor], title: str) -> Figure:
    """Draws one panel per layer, relative to its own maximum, on a square-root scale."""
    figure, axes = figures.grid(1, len(fields), cell=(2.7, 3.0), title=title)
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    for axis, (name, field) in zip(axes[0], fields.items(), strict=True):
        relative = (field / field.max().clamp(min=1e-30)).numpy()
        figures.show_image(axis, relative, cmap="magma", norm=norm)
        side = square_side(field, 0.5)
        row, column = square_centre(field)
        corner = (column - side / 2, row - side / 2)
        axis.add_patch(Rectangle(corner, side, side, fill=False, color="#27bceb", linewidth=1))
        axis.set_title(f"{in_words(name)}\nradius {radius(field):.1f} px")
        areas = [f"{share:.0%} in {area_ratio(field, share):.1%}" for share in AREAS]
        lines = ["field in area of the image:", ", ".join(areas[:2]), ", ".join(areas[2:])]
        axis.set_xlabel("\n".join(lines), fontsize=7)
    figure.colorbar(
        ScalarMappable(norm, "magma"),
        ax=axes,
        shrink=0.75,
        label="|gradient| / maximum",
        ticks=[0, 0.05, 0.25, 0.5, 1],
    )
    # Not figure.text, for which the layout leaves no room.
    figure.supxlabel(
        "central unit: on an even side the mean of the two in the middle\n"
        "blue: smallest square around the field's centroid with 50 % of it; radius: root mean "
        "square distance from the centroid",
        fontsize=7,
    )
    return figure
