"""When a setting has an effect: the conditions on the fields of `config/hparams.py`.

They are written once, on the field or its group, and read from there wherever they matter: errors,
the help of a task, hparams.yaml and wandb, comparisons, the arguments of parts, and the tests. A
condition refers to another setting, which must have an effect itself:

    teacher_temp: Annotated[float, Needs("dino.sharpening", True)]      sharpening is true
    fusion_steps: Annotated[int, Needs("segmentation.fusion", "fusion2")]   fusion2 is in the list
    head_lr: Annotated[float, Needs("optim.lr")]                        it is not off (0, null, …)
    max_epochs: Annotated[int, Unless("trainer.max_steps")]             it is off
    k: Annotated[int, Needs("task", "probe") | Needs("online.enabled")]     one of the two
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from config.errors import as_typed
from config.names import TASKS, split
from config.types import Switch


@dataclasses.dataclass(frozen=True, init=False)
class Needs:
    """The setting at `path` has one of `values`; without values: it is not off.

    Off are false, null, 0 and empty lists. A value `family/*` matches every `family/member`.
    """

    path: str
    values: tuple[Any, ...]

    def __init__(self, path: str, *values: Any) -> None:
        object.__setattr__(self, "path", path)
        object.__setattr__(self, "values", values)

    def __or__(self, other: Condition) -> Either:
        """Either of two conditions."""
        return Either(_alternatives(self) + _alternatives(other))

    def matches(self, value: Any) -> bool:
        """Whether a value of the other setting is one of those needed."""
        if not self.values:
            return bool(value)
        # Compares types too, because true == 1. No set, because values may not be hashable.
        wanted = [(type(each), each) for each in self.values]
        found = value if isinstance(value, list) else [value]
        rows = (split(each)[0] if isinstance(each, str) else each for each in found)
        return any((type(each), each) in wanted for each in rows)

    def holds(self, value_of: Callable[[str], Any]) -> bool:
        """Whether it holds, given the values of settings; null for those without effect."""
        return self.matches(value_of(self.path))

    def __str__(self) -> str:
        """What has to be given, as on a command line."""
        return " ".join([f"--{self.path}", " or ".join(map(as_typed, self.values))]).strip()


class Unless(Needs):
    """The setting at `path` has none of `values`; without values: it is off."""

    def holds(self, value_of: Callable[[str], Any]) -> bool:
        """Whether it holds, given the values of settings; null for those without effect."""
        return not self.matches(value_of(self.path))

    def __str__(self) -> str:
        """What must not be given, as on a command line."""
        return f"no {super().__str__()}"


@dataclasses.dataclass(frozen=True)
class Either:
    """At least one of several conditions."""

    conditions: tuple[Needs, ...]

    def __or__(self, other: Condition) -> Either:
        """Adds an alternative."""
        return Either(self.conditions + _alternatives(other))

    def holds(self, value_of: Callable[[str], Any]) -> bool:
        """Whether one of them holds."""
        return any(condition.holds(value_of) for condition in self.conditions)

    def __str__(self) -> str:
        """What has to be given, as on a command line."""
        return " or ".join(map(str, self.conditions))


Condition = Needs | Either
Rules = Mapping[str, tuple[Condition, ...]]


def _alternatives(condition: Condition) -> tuple[Needs, ...]:
    return condition.conditions if isinstance(condition, Either) else (condition,)


def metadata(annotation: Any) -> Iterator[Any]:
    """Yields the metadata of `Annotated` types, at any depth of unions."""
    if get_origin(annotation) is Annotated:
        inner, *found = get_args(annotation)
        yield from metadata(inner)
        yield from found
    else:
        for argument in get_args(annotation):
            yield from metadata(argument)


def marks(settings: type, path: str) -> Iterator[Any]:
    """Yields the `Annotated` metadata of the setting at a dotted path, and of its groups.

    Args:
        settings: the dataclass of all settings.
        path: of one of them.
    """
    for name in path.split("."):
        hint = get_type_hints(settings, include_extras=True)[name]
        yield from metadata(hint)
        settings = get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _rules_of(settings: type) -> Rules:
    """Collects the conditions of every setting, those of its groups first.

    Args:
        settings: the dataclass of all settings.

    Raises:
        TypeError: a condition refers to no setting, or conditions form a circle.
    """
    rules = dict(_collect(settings, "", ()))
    for path, conditions in rules.items():
        for each in conditions:
            for alternative in _alternatives(each):
                if alternative.path not in rules:
                    raise TypeError(
                        f"{path} has a condition on {alternative.path}: no such setting."
                    )
    for path in rules:
        _check_no_circle(rules, path, ())
    return rules


_cached = cache(_rules_of)
rules_of: Callable[[type], Rules] = _cached
forget_rules = _cached.cache_clear


def _collect(
    group: type, prefix: str, inherited: tuple[Condition, ...]
) -> Iterator[tuple[str, tuple[Condition, ...]]]:
    hints = get_type_hints(group, include_extras=True)
    found = {name: tuple(metadata(hints[name])) for name in hints}
    switches = [name for name in found if any(isinstance(e, Switch) for e in found[name])]
    for item in dataclasses.fields(group):
        path = prefix + item.name
        conditions = inherited + tuple(e for e in found[item.name] if isinstance(e, Needs | Either))
        kind = get_args(hints[item.name])[0] if found[item.name] else hints[item.name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from _collect(kind, path + ".", conditions)
        else:
            switched = tuple(Needs(prefix + s, True) for s in switches if s != item.name)
            yield path, conditions + switched


def _check_no_circle(rules: Rules, path: str, seen: tuple[str, ...]) -> None:
    if path in seen:
        raise TypeError(f"conditions in a circle: {' needs '.join((*seen, path))}")
    for condition in rules[path]:
        for alternative in _alternatives(condition):
            _check_no_circle(rules, alternative.path, (*seen, path))


def settled_by(condition: Condition, task: str) -> bool:
    """Whether a condition always holds on a task, whatever the other settings are."""
    return any(
        each.path == "task" and each.holds(lambda _: task) for each in _alternatives(condition)
    )


def unmet(hparams: object, path: str) -> Condition | None:
    """Returns the first condition on a setting that does not hold; None if it has an effect.

    Raises:
        AttributeError: there is no such setting, for example after editing config/hparams.py.
    """
    rules = rules_of(type(hparams))
    if path not in rules:
        get_leaf(hparams, path)

    def value_of(other: str) -> Any:
        return None if unmet(hparams, other) else get_leaf(hparams, other)

    return next((each for each in rules[path] if not each.holds(value_of)), None)


def no_effect(hparams: object, path: str) -> str | None:
    """Says why a setting has no effect; None if it has one."""
    condition = unmet(hparams, path)
    if condition is None:
        return None
    settings, task = type(hparams), get_leaf(hparams, "task")
    if not possible_on(settings, path, task):
        tasks = [each for each in TASKS if possible_on(settings, path, each)]
        return f"on task {task} (only {', '.join(tasks)})"
    # Conditions that only another task would fulfil do not help.
    ways = [each for each in _alternatives(condition) if _possible(settings, each, task)]
    values = {each: get_leaf(hparams, each.path) for each in ways}
    lacking = [each for each in ways if type(each) is Needs and not each.matches(values[each])]
    reasons = [
        f"with --{each.path} {as_typed(values[each])}"
        if isinstance(each, Unless)
        else str(no_effect(hparams, each.path))  # has the right value, but no effect itself
        for each in ways
        if each not in lacking
    ]
    return " and ".join([*reasons, *([f"without {Either(tuple(lacking))}"] if lacking else [])])


def possible_on(settings: type, path: str, task: str) -> bool:
    """Whether a setting can have an effect on a task, for some values of other settings."""
    return all(
        any(_possible(settings, alternative, task) for alternative in _alternatives(each))
        for each in rules_of(settings)[path]
    )


def _possible(settings: type, condition: Needs, task: str) -> bool:
    if condition.path == "task":
        return condition.holds(lambda _: task)
    return isinstance(condition, Unless) or possible_on(settings, condition.path, task)


def settings_of(hparams: object, selector: str, choice: Any = None) -> dict[str, Any]:
    """Returns the settings of the part chosen by `selector`.

    Args:
        hparams: all settings.
        selector: path of the setting that chooses, such as `backbone.name`.
        choice: which of several chosen parts; None: the only one.

    Returns:
        By the last part of their names, the settings with an effect whose condition names this
        choice, without null, which means the part's own default.
    """
    chosen = get_leaf(hparams, selector) if choice is None else choice
    found: dict[str, Any] = {}
    for path, conditions in rules_of(type(hparams)).items():
        named = any(
            type(each) is Needs and each.values and each.path == selector and each.matches(chosen)
            for condition in conditions
            for each in _alternatives(condition)
        )
        value = get_leaf(hparams, path) if named else None
        if value is not None and unmet(hparams, path) is None:
            found[path.rpartition(".")[2]] = value
    return found


def get_leaf(hparams: Any, path: str) -> Any:
    """Returns the setting at a dotted path."""
    for name in path.split("."):
        hparams = getattr(hparams, name)
    return hparams
