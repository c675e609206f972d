"""The vocabulary with which `config/hparams.py` describes valid values and effects."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

from config.names import split
from utils.text import did_you_mean


@dataclass(frozen=True)
class OneOf:
    """The value is one of these names; `family/*` matches every `family/member`."""

    names: Collection[str]

    def __post_init__(self) -> None:
        # A tuple, because members of a union must be hashable.
        object.__setattr__(self, "names", tuple(self.names))

    def problem(self, value: object) -> str | None:
        """Says what is wrong with `value`, or None."""
        if isinstance(value, str) and split(value)[0] in self.names:
            return None
        near = did_you_mean(str(value), self.names)
        hint = f".{near}" if near else ""
        known = ", ".join(name.replace("/*", "/NAME") for name in self.names)
        return f"expected one of {known}{hint}"


@dataclass(frozen=True)
class SomeOf:
    """The value is a list of at least `least` of these names."""

    names: Collection[str]
    least: int = 1

    def problem(self, value: object) -> str | None:
        """Says what is wrong with `value`, or None."""
        items = value if isinstance(value, list) else []
        problems = (OneOf(self.names).problem(item) for item in items)
        few = len(items) < self.least
        return next(filter(None, problems), f"expected at least {self.least}" if few else None)


@dataclass(frozen=True)
class Between:
    """The number, or each of a list, lies in [low, high], ends included."""

    low: float
    high: float = float("inf")

    def problem(self, value: object) -> str | None:
        """Says what is wrong with `value`, or None. Strings such as `auto` and null pass."""
        if all(self.low <= number <= self.high for number in numbers_in(value)):
            return None
        upper = "" if self.high == float("inf") else f" and at most {self.high:.12g}"
        return f"expected at least {self.low:.12g}{upper}"


def numbers_in(value: object) -> list[int | float]:
    """Returns the number, or the numbers of a list; true and false do not count."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, int | float) and not isinstance(item, bool)]


@dataclass(frozen=True)
class FolderName:
    """The text is the name of a folder, and is not a reserved word of the options that take it."""

    reserved: Collection[str] = ()

    def problem(self, value: object) -> str | None:
        """Says what is wrong with `value`, or None."""
        if not isinstance(value, str):
            return None
        if value in self.reserved:
            return f"{value} means something else; choose another name"
        if value.startswith((".", "-", "run:")) or any(sign in value for sign in "/\\"):
            return "expected a folder's name without slashes, not beginning with . or - or run:"
        if os.name == "nt" and _NOT_ON_WINDOWS.fullmatch(value):
            return (
                'expected a name that Windows takes: without < > : " | ? *, not ending in a dot, '
                "and not that of a device (con, nul, aux, prn, com1, lpt1, ...)"
            )
        if len(value.encode()) > _LONGEST_NAME:
            return f"expected at most {_LONGEST_NAME} bytes"
        return None


_DEVICE = r"(con|nul|aux|prn|(com|lpt)\d)(\..*)?"
_NOT_ON_WINDOWS = re.compile(rf'.*[<>:"|?*\x00-\x1f].*|.*[ .]|{_DEVICE}', re.I | re.S)
_LONGEST_NAME = 200  # file systems allow 255, studies append to it


@dataclass(frozen=True)
class Auto:
    """The string `auto` stands for a value that is determined when the run starts."""


@dataclass(frozen=True)
class Cadence(Auto):
    """Every n epochs. `auto`: `times` per run, but never more often than every `least` epochs.

    Nor more often than every `steps` optimizer steps: a readout that takes as long as some steps
    would otherwise dominate a short run.
    """

    least: int = 1
    times: int = 1
    steps: int = 0

    def every(self, epochs: int, steps: int) -> int:
        """Returns n for a run of so many epochs, which have so many steps together."""
        return max(self.least, -(-epochs // self.times), -(-self.steps * epochs // steps))


@dataclass(frozen=True)
class StepCadence(Auto):
    """Every n optimizer steps. `auto`: `times` per run, with n between `least` and `most`."""

    most: int = 1
    times: int = 1
    least: int = 1

    def every(self, steps: int) -> int:
        """Returns n for a run of so many steps."""
        return max(self.least, min(self.most, steps // self.times))


@dataclass(frozen=True)
class Switch:
    """Turns its group on and off: if it is false, the group's other settings have no effect."""


@dataclass(frozen=True)
class Kept:
    """A resumed run keeps the value it was started with.

    All other settings may be changed with `--run.resume`.

    Attributes:
        because: why this one cannot change: the message after "because".
    """

    because: str


@dataclass(frozen=True)
class InTraining:
    """It has an effect only in training, and is refused with commands that train nothing.

    So are cadences, and settings that need something that learns (`config/actions.py`).
    """


@dataclass(frozen=True)
class Measures:
    """It changes what a validation measures: results before and after a change do not compare.

    A run that is resumed with another value chooses its best checkpoint anew.
    """


Count = Annotated[int, Between(1)]  # at least one
Natural = Annotated[int, Between(0)]  # zero or more
Width = Annotated[int, Between(1, 2**17)]  # of a layer; more is a typing error
Fraction = Annotated[float, Between(0.0, 1.0)]
NonNegative = Annotated[float, Between(0.0)]
Enabled = Annotated[bool, Switch()]
Often = Annotated[int | str, Cadence(5, 20, 80), Between(1)]
Seldom = Annotated[int | str, Cadence(10, 10, 160), Between(1)]
