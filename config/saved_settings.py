"""Compares settings with those that a run has had so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from config.errors import ConfigError, as_typed
from config.hparams import Hparams
from config.rules import metadata, unmet
from config.settings_tree import Leaf, leaves
from config.types import Kept, Measures
from utils.nested import flat


def check_kept(hparams: Hparams, saved: Mapping[str, Any]) -> None:
    """Compares settings with those of the run to continue.

    Args:
        hparams: resolved.
        saved: nested, from the run's checkpoint; may lack settings newer than its version.

    Raises:
        ConfigError: a setting that the run keeps differs; names both values and the reason.
    """
    for leaf, before in given_anew(hparams, saved):
        for kept in metadata(leaf.annotation):
            if isinstance(kept, Kept):
                raise ConfigError(
                    f"--{leaf.path} {as_typed(leaf.value)}: a resumed run keeps "
                    f"{as_typed(before)}, because {kept.because}. Leave it out, or start a new run."
                )


def remeasured(hparams: Hparams, saved: Mapping[str, Any]) -> list[str]:
    """Returns the changed settings that make validations not comparable with those so far.

    Args:
        hparams: resolved.
        saved: see `check_kept`.
    """
    anew = (leaf for leaf, _ in given_anew(hparams, saved))
    return [leaf.path for leaf in anew if Measures() in metadata(leaf.annotation)]


def given_anew(hparams: Hparams, saved: Mapping[str, Any]) -> Iterator[tuple[Leaf, Any]]:
    """Yields the settings that differ from those of a run so far, with the old value.

    Args:
        hparams: resolved.
        saved: see `check_kept`.
    """
    before = flat(saved)
    for leaf in leaves(hparams):
        known = leaf.path in before and unmet(hparams, leaf.path) is None
        if known and before[leaf.path] != leaf.value:
            yield leaf, before[leaf.path]
