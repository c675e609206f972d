"""Times attention on a CPU in bfloat16: torch's fused kernel against plain operations, in turns.

    python benchmarks/cpu_attention.py [--rounds 3]

Forward and backward passes of ViTs with random weights; medians over the rounds. Runs use the
result in `choose_attention` of agents/backbone.py.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from models.backbones.vit import ViT, vit_demo, vit_small, vit_tiny

_STEPS = 2
_WAYS = ((True, False), (True, True), (False, True))  # fused or not, in bfloat16 or not


@dataclass(frozen=True)
class Case:
    """A network and the images it is trained on."""

    make: Callable[..., ViT]
    side: int
    patch_size: int
    depth: int
    batch: int

    def row(self, rounds: int) -> str:
        """Returns the line of the table."""
        net = self.make(image_size=self.side, patch_size=self.patch_size, depth=self.depth)
        images = torch.randint(0, 256, (self.batch, 3, self.side, self.side), dtype=torch.uint8)
        times = [[_seconds(net, images, *way) for way in _WAYS] for _ in range(rounds)]
        single, kernel, plain = (statistics.median(each) for each in zip(*times, strict=True))
        tokens = (self.side // self.patch_size) ** 2 + net.num_prefix
        name = self.make.__name__
        cells = (f"{seconds:.3f}" for seconds in (single, kernel, plain))
        return f"| `{name}` | {tokens} | {' | '.join(cells)} | {kernel / plain:.2f} |"


CASES = (
    Case(vit_demo, 48, 8, 3, 256),
    Case(vit_tiny, 96, 16, 4, 256),
    Case(vit_tiny, 32, 4, 4, 256),
    Case(vit_small, 224, 16, 4, 16),
    Case(vit_small, 448, 16, 4, 8),
)


def _seconds(net: ViT, images: torch.Tensor, fused: bool, half: bool) -> float:
    for block in net.attention_modules():
        block.fused_attn = fused
    for step in range(_STEPS + 1):
        if step == 1:
            started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = net(images).pooled.float().square().mean()
        loss.backward()
    return (time.perf_counter() - started) / _STEPS


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    print("| network | tokens | float32, s | bf16, fused, s | bf16, plain, s | fused / plain |")
    print("|---|---|---|---|---|---|")
    for case in CASES:
        print(case.row(rounds), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
