"""Checks that a checkpoint fits the agent that the settings describe."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from agents.base import Agent
from callbacks.inspection import Classifies
from config.errors import as_typed
from config.saved_settings import check_kept, given_anew
from utils.run_checkpoints import broken, check_weights, map_run_checkpoint
from utils.run_folder import RunFolder

# Groups of settings that do not shape a network, and the exceptions in them that do.
_BESIDE_NETWORK = ("run", "data", "optim", "trainer", "logger", "callbacks", "probe")
_SHAPES_NETWORK = ("data.name", "data.root", "data.image_size")


def check_fits(agent: Agent, file: Path, checkpoint: Mapping[str, Any]) -> None:
    """Checks that a checkpoint can be loaded into an agent.

    Args:
        agent: built from the settings.
        file: the checkpoint's, for the message.
        checkpoint: its content.

    Raises:
        ValueError: the architecture or the classes differ; names the first difference. A tensor
            that is empty here takes any length. Or weights are NaN or infinite.
    """
    _check_classes(agent, file, checkpoint)
    saved = {key: value.shape for key, value in checkpoint["state_dict"].items()}
    own = {key: value.shape for key, value in agent.state_dict().items()}
    for key in sorted(saved.keys() | own.keys()):
        in_both = key in saved and key in own
        fills = in_both and own[key][:1] == (0,) and saved[key][1:] == own[key][1:]
        if saved.get(key) != own.get(key) and not fills:
            there, here = (str(tuple(s[key])) if key in s else "absent" for s in (saved, own))
            raise ValueError(
                f"{file} is of another architecture: {key} is {there} there and {here} with "
                f"these settings. {_as_they_were(agent, checkpoint)}"
            )
    check_weights(file, checkpoint)


def check_best(agent: Agent, file: Path) -> None:
    """Checks that the best checkpoint, which will be tested, belongs to the run.

    A damaged one is skipped: its readers fall back on another.

    Args:
        agent: built from the settings, which the last checkpoint fits.
        file: the last checkpoint.

    Raises:
        ValueError: it belongs to another run; says how they differ.
    """
    best = RunFolder.around(file).best
    if not (agent.trains and best.exists()) or broken(best):
        return
    saved = map_run_checkpoint(best)
    try:
        check_kept(agent.settings, saved["hyper_parameters"])
        check_fits(agent, best, saved)
    except ValueError as error:
        raise ValueError(
            f"{best} belongs to another run than {file.name}: put the right one back, or remove "
            f"it, and the best of the validations to come takes its place. ({error})"
        ) from error


def _as_they_were(agent: Agent, checkpoint: Mapping[str, Any]) -> str:
    """Says which settings to put back so that the network is that of its checkpoint."""
    changed = [
        f"--{leaf.path} {as_typed(before)} (not {as_typed(leaf.value)})"
        for leaf, before in given_anew(agent.settings, checkpoint["hyper_parameters"])
        if leaf.path in _SHAPES_NETWORK or leaf.path.partition(".")[0] not in _BESIDE_NETWORK
    ]
    default = "--backbone, --data.image_size and sizes of projectors and heads"
    return f"Leave {', '.join(changed) or default} as it was."


def _check_classes(agent: Agent, file: Path, checkpoint: Mapping[str, Any]) -> None:
    known = checkpoint.get("classes")
    if known is None or not isinstance(agent, Classifies):
        return
    for label, (there, here) in enumerate(zip_longest(known, agent.classes, fillvalue="absent")):
        if there != here:
            raise ValueError(
                f"{file} is of other classes: label {label} is {there} there and {here} in the "
                "data set now. Restore its list of classes, or train anew."
            )
