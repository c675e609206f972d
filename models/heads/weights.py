"""Loads weights into a segmentation head."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from models.heads.base import Head
from models.state_dicts import find_network
from utils.run_checkpoints import best_or_last
from utils.run_folder import named_run
from utils.weight_files import check_finite, read_weights


def load_head(head: Head, weights: str, runs_dir: str = "runs") -> str | None:
    """Loads `weights` into `head`, all of them or none.

    Args:
        head: changed in place.
        weights: `none`, a public source of this head (`coco`), `run:NAME` or a file. If the file
            has a whole network (torchvision's, or a checkpoint of a run), only the head is read.
        runs_dir: folder in which `run:NAME` is looked up.

    Returns:
        A description of what was loaded, or None for `none`.

    Raises:
        ValueError: there is no such source, or the weights are of another head or number of
            classes, or not finite.
        FileNotFoundError: there is no such file or run.
    """
    if weights == "none":
        return None
    if weights == "coco":
        if weights not in head.sources:
            raise ValueError("--segmentation.head_weights coco: there are some for deeplabv3 only.")
        state = head.sources[weights]()
    else:
        run = named_run(weights, runs_dir)
        file = best_or_last(run) if run else Path(weights)
        state = read_weights(file)
    _load(head, state, weights)
    return f"head weights from {weights}: {len(head.state_dict())} tensors matched (100%)"


def _load(head: Head, state: dict[str, Tensor], source: str) -> None:
    own = head.state_dict()
    # A run's checkpoint has `head.…`; torchvision's file has the keys of the head itself.
    namings = [{f"head.{key}": key for key in own}, {key: key for key in own}]
    there = find_network(state, namings, source).state
    found = {key: value for key, value in there.items() if key in own}
    missing = [key for key in own if key not in found]
    if missing:
        raise ValueError(
            f"--segmentation.head_weights {source}: {len(missing)} of {len(own)} tensors are not "
            f"in it, first {missing[0]}. It is of another --segmentation.head."
        )
    for key, value in found.items():
        if value.shape != own[key].shape:
            raise ValueError(
                f"--segmentation.head_weights {source}: {key} is {tuple(value.shape)} there and "
                f"{tuple(own[key].shape)} here. It was trained for another number of classes or on "
                "a backbone of another width."
            )
    check_finite(found, f"--segmentation.head_weights {source}")
    with torch.no_grad():
        for key, value in found.items():
            own[key].copy_(value)
