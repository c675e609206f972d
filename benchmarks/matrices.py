"""Draws cross-correlation matrices of several runs on the same images, side by side.

python benchmarks/matrices.py RUN RUN … --samples 256 --out figure.png

Every run's last checkpoint embeds the same images in the same views, in eval mode, so that the
matrices differ only by training. Prints a table with the loss of each matrix, its chance level (the
noise floor) and the excess over it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))


def matrix(run: Path, samples: int, split: str, start_over: bool) -> tuple[Any, int, float]:
    """Returns C of `samples` images, the number of training steps, and lambda."""
    import torch

    from agents.build import build_agent, build_data
    from agents.sources import build_source
    from config.hparams import Hparams
    from config.resolve import resolve
    from config.settings_tree import update
    from config.yaml_files import read_yaml
    from models.losses.barlow_twins import cross_correlation
    from utils.weight_files import read_checkpoint

    hparams = resolve(update(Hparams(), read_yaml(run / "hparams.yaml"), str(run)))
    hparams.trainer.chunk_size = 32
    hparams.data.batch_size = samples
    source = build_source(hparams)
    data: Any = build_data(hparams, source)
    data.setup("fit")
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    agent: Any = build_agent(hparams, source, loaded=start_over)
    if not start_over:
        agent.load_state_dict(checkpoint["state_dict"])
    agent.eval()
    dataset = data.train_set if split == "train" else data.val_set
    batch = next(iter(data.loading.loader(dataset)))
    with torch.no_grad():
        views, _ = agent.information.split([agent.features(view) for view in batch.views])
        z1, z2 = map(agent.projector, views)
    steps = 0 if start_over else checkpoint["global_step"]
    return cross_correlation(z1, z2), steps, float(hparams.barlow_twins.lambd)


def main() -> None:
    """Draws and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--split", choices=("train", "val"), default="train")
    parser.add_argument("--out", type=Path, default=Path("matrices.png"))
    arguments = parser.parse_args()

    from models.losses.barlow_twins import barlow_twins_loss, noise_floor, summarise
    from utils import figures

    arms = [(arguments.runs[0], True), *((run, False) for run in arguments.runs)]
    title = (
        f"Cross-correlation of the same {arguments.samples} {arguments.split} images in the same "
        "two views"
    )
    figure, axes = figures.grid(1, len(arms), cell=(5.4, 5.4), title=title)
    print("| run | steps | mean diagonal | off-diagonal RMS | loss | chance | excess |")
    print("|---|---|---|---|---|---|---|")
    for axis, (run, start_over) in zip(axes[0], arms, strict=True):
        correlation, steps, lambd = matrix(run, arguments.samples, arguments.split, start_over)
        name = "before training" if start_over else run.name
        found = summarise(correlation)
        diagonal, off = found.diagonal_mean, found.off_diagonal_rms
        loss = barlow_twins_loss(correlation, lambd).item()
        chance = noise_floor(len(correlation), arguments.samples, lambd)
        print(
            f"| {name} | {steps} | {diagonal:.3f} | {off:.3f} | {loss:.1f} | {chance:.1f} | "
            f"{loss - chance:.1f} |"
        )
        image = axis.imshow(correlation.numpy(), cmap=figures.CORRELATION, vmin=-1, vmax=1)
        axis.grid(False)
        axis.set(
            title=f"{name}, {steps} steps\nmean diagonal {diagonal:.2f}, off-diag. RMS {off:.3f}",
            xlabel="dimension, view 2",
        )
    axes[0, 0].set_ylabel("dimension, view 1")
    figure.colorbar(image, ax=axes, shrink=0.7, label="correlation")
    figure.savefig(arguments.out)
    print(f"\n{arguments.out}")


if __name__ == "__main__":
    main()
