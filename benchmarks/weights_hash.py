"""Prints SHA-256 of the tensors in weight files, as float32: equal exactly when the weights are.

python benchmarks/weights_hash.py runs/*/checkpoints/backbone.pth
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def main() -> None:
    """Prints one line per file."""
    from utils.weight_files import read_checkpoint, tensors_in

    for name in sys.argv[1:]:
        digest = hashlib.sha256()
        for key, value in sorted(tensors_in(read_checkpoint(Path(name)), name).items()):
            digest.update(key.encode() + value.float().contiguous().numpy().tobytes())
        print(digest.hexdigest()[:16], name)


if __name__ == "__main__":
    main()
