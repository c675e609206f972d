"""Loads weights into a backbone if it then computes the same as their source, else refuses them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import floor
from pathlib import Path

import torch
from torch import Tensor

from models.backbones.base import Backbone, StateDict
from models.backbones.leftovers import ANOTHER_ARCHITECTURE, Leftovers, is_derived
from models.backbones.other_names import in_timms_names
from models.state_dicts import Network, find_network, nameless_averages, without_chunks
from utils.run_folder import named_run
from utils.text import command_line, count, did_you_mean
from utils.weight_files import check_finite, read_weights


@dataclass(frozen=True)
class LoadReport:
    """What happened to every tensor.

    Attributes:
        source: file or name.
        network: the chosen network in the file.
        matched: tensors of the backbone that the file has.
        resized: those of them that had another shape.
        folded: descriptions of parts that were folded into other weights.
        missing: tensors of the backbone that the file does not have.
        unexpected: tensors of the file's network that were left out, without effect on features.
        nameless: lists of averaged weights in the file, unusable because they have no names.
        coverage: matched share of the backbone's parameters.
    """

    source: str
    network: Network
    matched: tuple[str, ...]
    resized: tuple[str, ...]
    folded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    nameless: tuple[str, ...]
    coverage: float

    def __str__(self) -> str:
        """One paragraph a user can act on."""
        there = len(self.network.state)
        lines = [
            f"weights from {self.source}: {len(self.matched)} tensors matched "
            f"({floor(100 * self.coverage)}% of the parameters, {there - len(self.unexpected)} of "
            f"{there} tensors in the file)"
        ]
        if self.network.prefix:
            others = ", ".join(f"{prefix}*" for prefix in self.network.others)
            lines.append(
                f"taken: {self.network.prefix}*" + (f", rather than {others}" if others else "")
            )
        if self.nameless:
            lists = ", ".join(self.nameless)
            lines.append(f"not taken: {lists}, averaged weights in a list without names")
        lines.extend(self.folded)
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
        FileNotFoundError: there is no such file or run.
    """
    if weights == "none":
        return None
    if weights in ("pretrained", "dino", "barlow_twins", "coco"):
        if weights not in backbone.sources:
            known = ", ".join(backbone.sources) or "none"
            raise ValueError(
                f"--backbone.weights {weights}: there are none for this backbone, patch size and "
                f"output stride (published for it: {known}; which network has which: "
                "docs/backbones.md). A file or run:NAME works too."
            )
        return load_state(backbone, backbone.sources[weights](), weights)
    if weights == "run:":  # an unset shell variable
        raise ValueError("--backbone.weights run: needs the name of a run, run:NAME.")
    run = named_run(weights, runs_dir)
    if run and run.hparams.is_file() and not run.backbone.is_file():
        raise FileNotFoundError(
            f"--backbone.weights {weights}: {run.backbone} does not exist: a run writes it at its "
            f"end. --run.resume {command_line(run.called(runs_dir))} finishes it, or writes a "
            "lost file again."
        )
    if run and not run.backbone.is_file():
        finished = [each.parts[-3] for each in Path(runs_dir).glob("*/checkpoints/backbone.pth")]
        raise FileNotFoundError(
            f"--backbone.weights {weights}: no run {run.name} has finished in {runs_dir}/ "
            f"(--run.dir).{did_you_mean(run.name, finished)} Train it first: --run.name {run.name} "
            f"--run.dir {runs_dir}, or --experiment {run.name} where that is the name of an "
            "experiment."
        )
    file = run.backbone if run else Path(weights)
    return load_state(backbone, read_weights(file), str(file))


def load_state(backbone: Backbone, tensors: Mapping[str, Tensor], source: str) -> LoadReport:
    """Loads the network of this architecture from the tensors of a file; changes all or nothing.

    The settings define the architecture. A file's network is expressed in it exactly
    (`Backbone.fold`) or refused: if we built what a file contains, our checkpoints would not fit
    the settings beside them. What no file records is assumed to match: the number of heads, the
    activation, the normalisation of images.

    Args:
        backbone: changed in place.
        tensors: by name, see `tensors_in`.
        source: for messages.

    Raises:
        ValueError: the backbone would compute something else, or weights are not finite.
    """
    own = backbone.net.state_dict()
    network = _network(backbone, tensors, source)
    at_least_float32 = {
        key: value.to(torch.promote_types(value.dtype, torch.float32))
        if value.is_floating_point()
        else value
        for key, value in network.state.items()
    }
    state, folded = backbone.fold(at_least_float32)
    unexpected = [key for key in state if key not in own]
    missing = [key for key in own if key not in state and not is_derived(key)]
    left = Leftovers(source, _beyond(backbone, unexpected), _beyond(backbone, missing))
    left.refuse(own, state)
    fitted = _fitted(backbone, own, state, source)
    with torch.no_grad():
        for key, value in fitted.items():
            own[key].copy_(value)
    parameters = {key: value.numel() for key, value in backbone.net.named_parameters()}
    return LoadReport(
        source,
        network,
        matched=tuple(fitted),
        resized=tuple(key for key in fitted if fitted[key].shape != state[key].shape),
        folded=folded,
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        nameless=nameless_averages(tensors),
        coverage=sum(parameters[key] for key in parameters if key in fitted)
        / sum(parameters.values()),
    )


def _network(backbone: Backbone, tensors: Mapping[str, Tensor], source: str) -> Network:
    """Finds the network by the names of its modules, or their numbers in an nn.Sequential."""
    own = backbone.net.state_dict()
    numbers = {name: str(index) for index, (name, _) in enumerate(backbone.net.named_children())}
    parts = {key: key.partition(".") for key in own}
    numbered = {f"{numbers.get(first)}.{rest}": key for key, (first, _, rest) in parts.items()}
    namings = [{key: key for key in own}, numbered]
    named = without_chunks(in_timms_names(tensors, own), own)
    found = find_network(named, namings, source)
    # Modules of an nn.Sequential after the features, such as a classifier, get their names too.
    names = {number: name for name, number in numbers.items()}
    split = {key: key.partition(".") for key in found.state}
    state = {f"{names.get(a, a)}{dot}{b}": found.state[key] for key, (a, dot, b) in split.items()}
    found = replace(found, state=state)
    if 10 * len(own.keys() & found.state) < len(own):
        raise ValueError(
            f"{source} is not loaded: it has {len(tensors)} tensors ({_some(tensors)}), and those "
            f"of this network ({_some(own)}) are not among them under any prefix. These weights "
            "are of another architecture, or written by another library. Make --backbone.name fit."
        )
    return found


def _some(keys: Collection[str]) -> str:
    return ", ".join(list(keys)[:2]) + ", …"


def _beyond(backbone: Backbone, keys: list[str]) -> list[str]:
    modules = tuple(f"{module}." for module in backbone.replaced)
    return [key for key in keys if not key.startswith(modules)]


def _fitted(backbone: Backbone, own: StateDict, state: StateDict, source: str) -> dict[str, Tensor]:
    """Resizes what can be resized, and checks shapes and values.

    Raises:
        ValueError: a tensor has another shape, is empty, or has integers (quantised weights), NaN
            or infinity.
    """
    for key in own.keys() & state.keys():
        if own[key].numel() and not state[key].numel():
            raise ValueError(
                f"{source} is not loaded: {key} is {tuple(state[key].shape)}, which holds nothing. "
                "It was lost when the file was written: get the file again."
            )
    try:
        fitted = {key: backbone.adapt(key, state[key]) for key in own if key in state}
    except ValueError as error:
        raise ValueError(f"{source} is not loaded: {error}.") from error
    for key, value in fitted.items():
        if value.shape != own[key].shape:
            raise ValueError(
                f"{source} is not loaded: {key} is {tuple(value.shape)}, expected "
                f"{tuple(own[key].shape)}. {_of_other_channels(value, own[key])}"
            )
        if own[key].is_floating_point() and not value.is_floating_point():
            raise ValueError(f"{source} is not loaded: {key} is {value.dtype}, not floating point.")
    check_finite(fitted, source)
    return fitted


def _of_other_channels(theirs: Tensor, own: Tensor) -> str:
    """Says why the shapes of two weights differ, and what to do."""
    rgb = own.ndim == theirs.ndim == 4 and own.shape[1] == 3  # a convolution on images
    if not rgb or theirs.shape[1] == 3 or theirs.shape[2:] != own.shape[2:]:
        return ANOTHER_ARCHITECTURE
    return (
        f"Its network reads images of {count(theirs.shape[1], 'channel')}, and images here have 3 "
        "(RGB, grey ones too). Take weights for RGB images."
    )
