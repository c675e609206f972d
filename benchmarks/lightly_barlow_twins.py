"""Pretrains our network with lightly's Barlow Twins: its loss, head and transforms.

Needs `pip install lightly`. Writes the backbone, to be probed like one of our runs:

python benchmarks/lightly_barlow_twins.py cifar10-2000.npz --seed 0 --out lightly-s0.pth
python main.py --task linear_probe … --backbone.weights lightly-s0.pth
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from lightly.loss import BarlowTwinsLoss
from lightly.models.modules import BarlowTwinsProjectionHead
from lightly.transforms.byol_transform import (
    BYOLTransform,
    BYOLView1Transform,
    BYOLView2Transform,
)
from PIL import Image
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from datamodules.cifar10 import CIFAR10
from datamodules.reading import read_rgb
from models.backbones.resnet import resnet18
from utils.optim import adamw, parameter_groups
from utils.schedules import warmup_cosine


class Views(Dataset[list[torch.Tensor]]):
    """CIFAR-10's training images through lightly's two-view transform."""

    def __init__(self, root: str) -> None:
        self.images: list[Image.Image] = [read_rgb(item) for item in CIFAR10(root).files("train")]
        size = {"input_size": 32, "gaussian_blur": 0.0}
        self.transform = BYOLTransform(BYOLView1Transform(**size), BYOLView2Transform(**size))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        """Both views of an image, normalised by lightly."""
        return self.transform(self.images[index])


def main() -> None:
    """Trains and writes the backbone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", help="CIFAR-10, official folder or npz file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--lambd", type=float, default=0.0051)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    backbone = resnet18(image_size=32, stem="cifar_maxpool")
    head = BarlowTwinsProjectionHead(backbone.embed_dim, arguments.dim, arguments.dim)
    criterion = BarlowTwinsLoss(lambda_param=arguments.lambd)
    lr = 1e-3 * (arguments.batch_size / 256) ** 0.5  # ours: optim.lr auto
    optimizer = adamw(parameter_groups({backbone: 1.0, head: 1.0}, lr, 0.05))
    loader = DataLoader(
        Views(arguments.root), arguments.batch_size, shuffle=True, drop_last=True, num_workers=1
    )
    steps, warmup = arguments.epochs * len(loader), len(loader)
    schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, steps, warmup, 0.001))
    started = time.perf_counter()
    for epoch in range(arguments.epochs):
        for views in loader:
            # As trainer.precision bf16-mixed, with the loss in float32.
            with torch.autocast("cpu", torch.bfloat16):
                z = [head(backbone.net(view)) for view in views[:2]]
            loss = criterion(*(each.float() for each in z))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        took = time.perf_counter() - started
        print(f"epoch {epoch + 1}: loss {loss.item():.1f}, {took:.0f} s", flush=True)
    torch.save(backbone.net.state_dict(), arguments.out)


if __name__ == "__main__":
    main()
