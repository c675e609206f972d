"""Keeps the settings that have an effect, and drops those that have none."""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from typing import Any

from config.errors import as_typed
from config.hparams import Hparams
from config.resolve import choose_names
from config.rules import no_effect, unmet
from config.settings_tree import leaves, set_leaf
from utils.nested import nested


def active_settings(hparams: Hparams) -> dict[str, Any]:
    """Returns the settings with an effect on this run, as a plain nested dict."""
    return nested(
        {leaf.path: leaf.value for leaf in leaves(hparams) if unmet(hparams, leaf.path) is None}
    )


def without_superseded(
    hparams: Hparams, below: Hparams, given: Collection[str]
) -> tuple[Hparams, list[str]]:
    """Removes settings of a file that lose their effect through the command line.

    Args:
        hparams: of file and command line together.
        below: of the file alone; settings without effect even there stay, to be refused.
        given: dotted paths on the command line, which always stay.

    Returns:
        A copy, and a sentence for each removed setting.
    """
    hparams, chosen, alone = deepcopy(hparams), choose_names(hparams), choose_names(below)
    sentences = []
    for leaf in leaves(hparams):
        reason = no_effect(chosen, leaf.path)
        if leaf.value == leaf.default or leaf.path in given or reason is None:
            continue
        if no_effect(alone, leaf.path) is None:
            set_leaf(hparams, leaf.path, leaf.default)
            sentences.append(f"{leaf.path} {as_typed(leaf.value)} no longer counts {reason}.")
    return hparams, sentences


def without_ineffective(hparams: Hparams) -> Hparams:
    """Returns a copy in which settings without effect have their defaults.

    For settings of earlier runs: older versions saved some that had no effect.
    """
    hparams = deepcopy(hparams)
    chosen = choose_names(hparams)
    for leaf in leaves(hparams):
        if unmet(chosen, leaf.path) is not None:
            set_leaf(hparams, leaf.path, leaf.default)
    return hparams
