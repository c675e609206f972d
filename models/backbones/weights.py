"""Puts weights into a backbone and says what fitted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.backbones.base import Backbone
from utils.checkpoints import network_state, read_checkpoint
from utils.run_folder import named_run


@dataclass(frozen=True)
class LoadReport:
    """What became of every key."""

    source: str
    matched: tuple[str, ...]
    resized: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    coverage: float

    def __str__(self) -> str:
        """One paragraph a user can act on."""
        lines = [
            f"weights from {self.source}: {len(self.matched)} tensors matched "
            f"({self.coverage:.0%} of the parameters)"
        ]
        for word in ("resized", "missing", "unexpected"):
            keys = getattr(self, word)
            if keys:
                shown = ", ".join(keys[:4]) + (", …" if len(keys) > 4 else "")
                lines.append(f"{len(keys)} {word}: {shown}")
        return "; ".join(lines)


def load_weights(backbone: Backbone, weights: str, runs_dir: str = "runs") -> LoadReport | None:
    """Loads `weights` into `backbone`.

    Args:
        backbone: changed in place.
        weights: `none`, a public source (`pretrained`, `dino`, `barlow_twins`, `coco`), `run:NAME`
            or a file.
        runs_dir: folder in which `run:NAME` is looked up.

    Returns:
        The report, or None for `none`.

    Raises:
        ValueError: this backbone has no such source, or the weights are of another architecture.
        FileNotFoundError: no such file or run.
    """
    if weights == "none":
        return None
    if weights in ("pretrained", "dino", "barlow_twins", "coco"):
        if weights not in backbone.sources:
            known = ", ".join(backbone.sources) or "none"
            raise ValueError(
                f"--backbone.weights {weights}: there are none for this backbone and patch size "
                f"(published for it: {known}). A file or run:NAME works too."
            )
        return load_state(backbone, backbone.sources[weights](), weights)
    run = named_run(weights, runs_dir)
    if run and not run.backbone.is_file():
        raise FileNotFoundError(
            f"--backbone.weights {weights}: no run {run.name} has finished in {runs_dir}/ (there "
            f"is no {run.backbone}). Train it first; one of the named experiments with: "
            f"python main.py --experiment {run.name} --run.dir {runs_dir}"
        )
    file = run.backbone if run else Path(weights)
    return load_state(backbone, network_state(read_checkpoint(file), str(file)), str(file))


def load_state(backbone: Backbone, state: Mapping[str, Tensor], source: str) -> LoadReport:
    """Loads a flat state dict in the architecture's public layout.

    Raises:
        ValueError: another architecture: too few parameters match, a shape differs, or the file
            has more blocks than the network.
    """
    own = backbone.net.state_dict()
    floating = {key: value.to(own[key].dtype) for key, value in state.items() if key in own}
    fitted = {key: backbone.adapt(key, value) for key, value in floating.items()}
    resized = [key for key in fitted if fitted[key].shape != state[key].shape]
    wrong = [key for key in fitted if fitted[key].shape != own[key].shape]
    matched = [key for key in fitted if key not in wrong]
    missing = [key for key in own if key not in matched]
    unexpected = [key for key in state if key not in own]

    parameters = {key: value.numel() for key, value in backbone.net.named_parameters()}
    covered = sum(count for key, count in parameters.items() if key in matched)
    report = LoadReport(
        source,
        tuple(matched),
        tuple(resized),
        tuple(missing),
        tuple(unexpected),
        covered / sum(parameters.values()),
    )
    # `blocks.11.…` in the file of a network that ends at `blocks.5`: half a network, silently.
    patterns = {re.sub(r"\d+", "N", key) for key in own}
    surplus = [
        key
        for key in unexpected
        if re.sub(r"\d+", "N", key) in patterns and key not in backbone.replaced
    ]
    if wrong or surplus or report.coverage < backbone.min_coverage:
        detail = ""
        if wrong:
            key = wrong[0]
            detail = f" {key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}."
        elif surplus:
            detail = f" It also has {surplus[-1]}, for which there is no place."
        raise ValueError(
            f"{report}. These weights are of another architecture.{detail} Make --backbone.name, "
            "patch_size, depth, embed_dim fit the file (null: the architecture's own value)."
        )
    with torch.no_grad():
        for key in matched:
            own[key].copy_(fitted[key])
    return report
