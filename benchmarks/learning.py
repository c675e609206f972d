"""Draws the readouts of runs over the images seen, in one figure: `learning` of studies.

python benchmarks/learning.py "Barlow Twins=RUN,RUN" DINO=RUN --title "CIFAR-10" --out learning.png

Runs are folders; several after one label are its seeds. There is a panel for each of k-NN accuracy,
linear accuracy, dense k-NN and mass lift that any run has measured.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def main() -> None:
    """Draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="+", metavar="LABEL=RUN,…")
    parser.add_argument("--title", default="")
    parser.add_argument("--out", type=Path, default=Path("learning.png"))
    arguments = parser.parse_args()

    from agents.commands.study.learning import learning
    from utils import figures
    from utils.run_folder import RunFolder

    found = []
    for row in arguments.rows:
        label, _, runs = row.partition("=")
        found.append((label, [RunFolder(Path(run)) for run in runs.split(",")]))
    figure = learning(found, arguments.title)
    if figure is None:
        sys.exit("None of these runs has measured k-NN, linear accuracy, dense k-NN or mass lift.")
    figures.save(figure, arguments.out)


if __name__ == "__main__":
    main()
