"""Loads each layout of weight files: prints the largest difference of features, or the refusal.

python benchmarks/weight_layouts.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from models.backbones.weights import load_weights
from tests.models.layouts import LAYOUTS


def main() -> None:
    """Prints a table with one row per layout."""
    print("| file | largest difference, or why it is refused |\n|---|---|")
    with TemporaryDirectory() as folder:
        file = Path(folder) / "file.pth"
        for name, layout in LAYOUTS.items():
            net, backbone = layout.network(), layout.ours()
            torch.save(layout.write(dict(net.state_dict())), file)
            try:
                load_weights(backbone, str(file))
                cell = f"{layout.largest_difference(net, backbone):.1e}"
            except ValueError as error:
                reason = str(error).removeprefix(f"{file} is not loaded: ")
                cell = reason.removeprefix("it would compute something else here. ")
            print(f"| {name} | {cell} |", flush=True)


if __name__ == "__main__":
    main()
