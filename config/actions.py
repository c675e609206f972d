"""Which settings act with --evaluate, --predict, --export and --compare, which train nothing."""

from __future__ import annotations

from collections.abc import Sequence, Set

from config import names
from config.errors import ConfigError
from config.hparams import BACKBONE_LEARNS, HEAD_LEARNS, TRAINS, Hparams
from config.rules import marks, rules_of
from config.types import Cadence, InTraining, StepCadence

_LEARNING = (TRAINS, HEAD_LEARNS, BACKBONE_LEARNS)


def settings_given(argv: Sequence[str]) -> set[str]:
    """Returns all options on a command line, without dashes: settings by their dotted path."""
    options = {word[2:].partition("=")[0] for word in argv if word.startswith("--")}
    return set(map(_affirmed, options))


def _affirmed(option: str) -> str:
    """Returns the path of a switch in simple-parsing's negated form, `GROUP.noNAME`."""
    group, dot, name = option.rpartition(".")
    path = f"{group}{dot}{name.removeprefix('no')}"
    return path if path in rules_of(Hparams) else option


def check_acts(hparams: Hparams, actions: Sequence[str], given: Set[str]) -> None:
    """Checks that the options given with an action have an effect on it.

    Args:
        hparams: the settings, with chosen names.
        actions: at most one.
        given: see `settings_given`.

    Raises:
        ConfigError: one has no effect; names the first.
    """
    if actions in ([], ["--run.resume"]):
        return
    (action,) = actions
    if action == "--compare":
        why, without = "runs are shown as they are", given - {"compare", "run.dir", "debug"}
    else:
        settings = given & rules_of(Hparams).keys()
        why = "nothing is trained"
        without = {path for path in settings if not acts_beside(action, hparams.task, path)}
    if without:
        raise ConfigError(f"--{min(without)} has no effect with {action}: {why}.")


def acts_beside(action: str, task: str, path: str) -> bool:
    """Whether a setting can have an effect with an action that trains nothing.

    Args:
        action: --evaluate, --predict or --export.
        task: of the run.
        path: of the setting.
    """
    alone = (InTraining, Cadence, StepCadence)
    if any(isinstance(each, alone) or each in _LEARNING for each in marks(Hparams, path)):
        return False
    group, _, rest = path.partition(".")
    if group != "callbacks":
        return True
    callback = names.CALLBACKS.get(rest.partition(".")[0])
    return action == "--evaluate" and callback is not None and task in callback.evaluates
