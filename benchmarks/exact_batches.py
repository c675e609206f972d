"""Measures peak memory and time of one step for exact batches, in chunks and whole.

python benchmarks/exact_batches.py                     the table of RESULTS.md, section 3
python benchmarks/exact_batches.py --sizes 64 --repeats 5

Each measurement has its own process, as memory freed by an earlier one could hide its peak.
Compare times within one call only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def measure(batch: int, chunk: int | None, repeats: int, size: int) -> dict[str, float]:
    """Returns peak memory above the built model in MiB, and median seconds of a training step."""
    import torch

    from models.backbones.vit import vit_tiny
    from models.heads.projector import projector
    from models.losses.barlow_twins import barlow_twins_loss, cross_correlation
    from models.memory.chunking import forward_in_chunks
    from utils.chunks import chunk_sizes
    from utils.memory import peak_mb, reset_peak, resident_mb

    device = torch.device("cpu")
    torch.manual_seed(0)
    backbone, head = vit_tiny(image_size=size), projector(192, 512, 3)
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-4)
    for parameter in parameters:  # gradients and optimizer state belong to the built model
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    before = resident_mb()
    views = torch.randint(0, 256, (2, batch, 3, size, size), dtype=torch.uint8)
    stored = views.numel() / 2**20

    def embed(view: torch.Tensor) -> torch.Tensor:
        if chunk is None:
            return head(backbone(view).pooled)
        chunks = view.split(chunk_sizes(batch, chunk))
        return head(forward_in_chunks(backbone, lambda x: backbone(x).pooled, chunks, device))

    reset_peak(device)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        loss = barlow_twins_loss(cross_correlation(embed(views[0]), embed(views[1])), 0.0051)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return {
        "memory": peak_mb(device) - before,
        "stored": stored,
        "seconds": statistics.median(seconds),
    }


def problem(done: subprocess.CompletedProcess[str]) -> str:
    """Says why a measurement that failed gave no numbers."""
    from utils.memory import is_out_of_memory

    last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
    killed = done.returncode in (-9, 137)  # by a system that ran out of memory
    return "out of memory" if killed or is_out_of_memory(RuntimeError(last)) else last


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        batch, chunk = json.loads(arguments.one)
        print(json.dumps(measure(batch, chunk, arguments.repeats, arguments.image_size)))
        return
    print(
        "| N | chunk | memory over the model (MiB) | stored images (MiB) | s / step | time ratio |"
    )
    print("|---|---|---|---|---|---|")
    for batch in arguments.sizes:
        whole = None
        for chunk in (None, arguments.chunk):
            command = [sys.executable, __file__, "--one", json.dumps([batch, chunk])]
            command += ["--repeats", str(arguments.repeats)]
            command += ["--image-size", str(arguments.image_size)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"| {batch} | {chunk or 'whole'} | {problem(done)} | | | |", flush=True)
                continue
            found = json.loads(done.stdout)
            whole = whole or found["seconds"]
            print(
                f"| {batch} | {chunk or 'whole'} | {found['memory']:.0f} | {found['stored']:.1f} | "
                f"{found['seconds']:.2f} | {found['seconds'] / whole:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
