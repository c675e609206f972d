"""ResNets from torchvision (He et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import ResNet as Net
from torchvision.models import WeightsEnum

from models.attention import AttentionRequest
from models.backbones.base import Backbone, Features, StateDict, no_prefix
from models.layer_numbers import parse_layers
from utils.weight_files import download

_URL = "https://dl.fbaipublicfiles.com/"
_PUBLISHED = {
    "dino": "dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth",
    "barlow_twins": "barlowtwins/ep1000_bs2048_lrw0.2_lrb0.0048_lambd0.0051/resnet50.pth",
}
# DeepLabV3 trained on the COCO images that have VOC classes; its head: models/heads/deeplab.py.
COCO = "https://download.pytorch.org/models/deeplabv3_resnet50_coco-cd0a2569.pth"


class ResNet(Backbone):
    """torchvision's ResNet without classifier; the stages' outputs are the maps."""

    memory_format = torch.channels_last
    net: Net

    def __init__(self, net: Net, strides: tuple[int, ...], layers: str = "last") -> None:
        self.layers = parse_layers(layers, 4)
        width = net.fc.in_features
        super().__init__(
            width,
            tuple(width // 2 ** (3 - layer) for layer in self.layers),
            tuple(strides[layer] for layer in self.layers),
        )
        net.fc = nn.Identity()
        self.net = net

    def forward(self, images: Tensor, attention: AttentionRequest | None = None) -> Features:
        """See `Backbone.forward`."""
        if attention is not None:
            raise ValueError("A ResNet has no attention to show.")
        x = self._stem(images)
        stages = []
        for stage in self.stages():
            x = stage(x)
            stages.append(x)
        maps = tuple(stages[layer] for layer in self.layers)
        return Features(
            pooled=self.net.avgpool(x).flatten(1),
            maps=maps,
            prefix=no_prefix(maps),
            strides=self.map_strides,
        )

    def layer_maps(self, images: Tensor) -> dict[str, Tensor]:
        """See `Backbone.layer_maps`."""
        x = self._stem(images)
        maps = {}
        for number, stage in enumerate(self.stages(), start=1):
            for index, block in enumerate(stage.children()):
                x = block(x)
                maps[f"layer{number}.{index}"] = x
        return maps

    def _stem(self, images: Tensor) -> Tensor:
        net = self.net
        return net.maxpool(net.relu(net.bn1(net.conv1(self.normalise(images)))))

    def stages(self) -> list[nn.Module]:
        """The four stages; the stem stays frozen with the rest."""
        return [self.net.layer1, self.net.layer2, self.net.layer3, self.net.layer4]


def make_net(
    make: Callable[..., Net], dilatable: bool, stem: str, output_stride: int
) -> tuple[Net, tuple[int, ...]]:
    """Builds torchvision's network.

    Returns:
        The network, and the strides of its four stages.

    Raises:
        ValueError: the network cannot have this stride.
    """
    if output_stride != 32 and (not dilatable or stem != "imagenet"):
        raise ValueError(
            f"backbone.output_stride {output_stride} needs a ResNet-50 with the imagenet stem."
        )
    dilate = [False, output_stride == 8, output_stride <= 16]
    # zero_init_residual as in the official Barlow Twins code.
    net = make(weights=None, zero_init_residual=True, replace_stride_with_dilation=dilate)
    if stem == "imagenet":
        return net, tuple(min(stride, output_stride) for stride in (4, 8, 16, 32))
    net.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    if stem == "cifar_maxpool":
        return net, (2, 4, 8, 16)
    net.maxpool = nn.Identity()
    return net, (1, 2, 4, 8)


def _supervised(weights: WeightsEnum) -> StateDict:
    return weights.get_state_dict(progress=True, check_hash=True)


def resnet50_sources(output_stride: int) -> dict[str, Callable[[], StateDict]]:
    """Returns the public weights of ResNet-50 by name.

    Args:
        output_stride: `coco` was trained with 8 (dilated) and is offered only for this stride.
    """
    weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V1
    dilated = {"coco": partial(download, COCO)} if output_stride == 8 else {}
    return {
        "pretrained": partial(_supervised, weights),
        **{source: partial(download, _URL + path) for source, path in _PUBLISHED.items()},
        **dilated,
    }


def _plain(name: str, stem: str) -> str | None:
    # timm's network has torchvision's key names, and it can be built without a classifier.
    return f'timm.create_model("{name}", num_classes=0)' if stem == "imagenet" else None


def resnet18(
    *, image_size: int, stem: str = "imagenet", output_stride: int = 32, layers: str = "last"
) -> ResNet:
    """ResNet-18: 512 features, 11.2 M parameters."""
    models = torchvision.models
    backbone = ResNet(*make_net(models.resnet18, False, stem, output_stride), layers)
    backbone.plain = _plain("resnet18", stem)
    backbone.sources["pretrained"] = partial(_supervised, models.ResNet18_Weights.DEFAULT)
    return backbone


def resnet50(
    *, image_size: int, stem: str = "imagenet", output_stride: int = 32, layers: str = "last"
) -> ResNet:
    """ResNet-50: 2048 features, 23.5 M parameters."""
    net, strides = make_net(torchvision.models.resnet50, True, stem, output_stride)
    backbone = ResNet(net, strides, layers)
    backbone.plain = _plain("resnet50", stem)
    backbone.sources.update(resnet50_sources(output_stride))
    return backbone
