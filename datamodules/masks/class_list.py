"""`classes.yaml`: the names of classes and the pixel values or colours that mean them in masks.

- `names: [background, crop, weed]`: labels 0, 1, 2; or, by the value in the masks,
  `names: {0: background, 7: crop, 9: weed}`.
- `colours: ["#000000", "#00ff00", red]`: one for each name, for masks in colours and for pictures;
  also `[0, 255, 0]`, or a mapping by name.
- `ignore: [9, "#ffffff"]`: values, colours or names of void pixels, which count for nothing; 255 is
  always void, unless it has a name.
- `background: soil`: the class of pixels without an object, if it is not called background (in any
  case).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ImageColor
from pytorch_lightning.utilities import rank_zero_warn

from datamodules.masks.meanings import CLASS_LIST, DeclaredMeanings, IndexMeanings, Meanings, as_hex
from utils.palette import BACKGROUND, VOID
from utils.strict_yaml import load_yaml
from utils.text import count, did_you_mean

_KEYS = ("names", "colours", "ignore", "background")
_CALLED_VOID = ("void", "ignore", "ignored", "unlabeled", "unlabelled")
_MOST = VOID  # labels 0 … 254
_UNQUOTED = re.compile(rb"([\[,]\s*|[:-][ \t]+)#[0-9a-fA-F]{3,6}\b")
_IN_QUOTATION_MARKS = ' Write colours in quotation marks, "#ff0000": a bare # begins a comment.'
_HEX = 'a colour such as "#ff0000" (in quotation marks), red or [255, 0, 0]'


@dataclass(frozen=True)
class ClassList:
    """Classes, and how masks encode them.

    Attributes:
        names: by label; the background, if any, comes first and is called so (in any case).
        written: all names as the file has them, by value in the masks.
        meanings: maps the pixels of masks to labels.
        colours: of each class, as 0xrrggbb; empty if the list has none.
    """

    names: tuple[str, ...]
    written: Mapping[int, str]
    meanings: Meanings
    colours: tuple[int, ...] = ()

    @classmethod
    def of_names(cls, names: tuple[str, ...]) -> ClassList:
        """Returns classes whose values in masks are their labels; 255 is void."""
        return cls(names, dict(enumerate(names)), IndexMeanings.of_labels(len(names)))


def read_class_list(file: Path) -> ClassList:
    """Reads a list of classes; see the module.

    Raises:
        ValueError: an entry is not valid; names it and the file.
    """
    text = file.read_bytes()
    try:
        return _class_list(load_yaml(text, CLASS_LIST))
    except ValueError as error:
        hint = _IN_QUOTATION_MARKS if _UNQUOTED.search(text) else ""
        raise ValueError(f"{file.parent}/{error}{hint}") from error


def _class_list(content: Any) -> ClassList:
    if not isinstance(content, dict) or "names" not in content:
        raise ValueError(f"{CLASS_LIST}: expected `names:` and a list of them.")
    for key in content:
        if key not in _KEYS:
            hint = did_you_mean(str(key), _KEYS, 0.5) or f" Expected {', '.join(_KEYS)}."
            raise ValueError(f"{CLASS_LIST}: there is no entry {key}.{hint}")
        if content[key] is None:  # likely a mistake: YAML reads a bare #ff0000 as a comment
            raise ValueError(f"{CLASS_LIST}: {key} is empty: fill it in, or leave it out.")
    values = _names(content["names"])
    names = list(values.values())
    colours = _colours(content.get("colours"), names)
    ignored = _ignored(content.get("ignore"), names, values, colours)
    kept = [name for name in names if name not in ignored.names]
    if len(kept) < 2:
        raise ValueError(
            f"{CLASS_LIST}: {len(kept)} of {len(names)} names count, expected at least two."
        )
    if void := next((name for name in kept if name.lower() in _CALLED_VOID), None):
        rank_zero_warn(
            f"{CLASS_LIST}: {void} is a class like others, learnt and judged. If it is to count "
            f"for nothing, write `ignore: {void}`."
        )
    background = _background(content.get("background"), kept)
    if background is not None:
        kept = [background, *(name for name in kept if name != background)]
    label = {name: kept.index(name) if name in kept else VOID for name in names}
    by_value = {value: label[name] for value, name in values.items()}
    by_colour = {colour: label[name] for name, colour in colours.items()}
    shown = tuple(colours[name] for name in kept) if colours else ()
    if content.get("background") is not None:
        kept[0] = BACKGROUND
    return ClassList(
        tuple(kept),
        values,
        DeclaredMeanings(
            dict.fromkeys(ignored.values, VOID) | by_value,
            dict.fromkeys(ignored.colours, VOID) | by_colour if by_colour else {},
        ),
        shown,
    )


def _names(given: Any) -> dict[int, str]:
    """Returns names by value."""
    if isinstance(given, dict):
        for value in given:
            if not _is_number(value) or not 0 <= value < 2**31:
                raise ValueError(
                    f"{CLASS_LIST}: names has {value!r} where the value of a class in the masks "
                    "is expected, a whole number."
                )
        pairs = dict(given)
    elif isinstance(given, list):
        pairs = dict(enumerate(given))
    else:
        raise ValueError(f"{CLASS_LIST}: names is {given!r}, expected a list.")
    names = {value: _name(name) for value, name in pairs.items()}
    seen: dict[str, int] = {}
    for value, name in names.items():
        if name in seen:
            raise ValueError(f"{CLASS_LIST}: {name} is the name of two classes.")
        seen[name] = value
    if len(names) > _MOST:
        raise ValueError(f"{CLASS_LIST}: {len(names)} classes, expected at most {_MOST}.")
    return names


def _name(given: Any) -> str:
    if isinstance(given, bool | None):
        raise ValueError(
            f"{CLASS_LIST}: a name is {str(given).lower().replace('none', 'empty')}: YAML has "
            'yes, no, true and null as words of its own; write it in quotation marks, "no".'
        )
    if not isinstance(given, str | int | float) or not (name := str(given).strip()):
        raise ValueError(f"{CLASS_LIST}: {given!r} is no name.")
    if not name.isprintable():
        raise ValueError(f"{CLASS_LIST}: {name!r} has characters that cannot be shown.")
    return name


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_channels(values: Sequence[Any]) -> bool:
    return len(values) == 3 and all(_is_number(value) and 0 <= value <= 255 for value in values)


def _colours(given: Any, names: Sequence[str]) -> dict[str, int]:
    """Returns colours by name; empty if none are given."""
    if given is None:
        return {}
    if isinstance(given, dict):
        pairs = {_name(name): colour for name, colour in given.items()}
        for name in pairs:
            if name not in names:
                hint = did_you_mean(name, names)
                raise ValueError(f"{CLASS_LIST}: colours has {name}, which is no name.{hint}")
        if missing := [name for name in names if name not in pairs]:
            raise ValueError(f"{CLASS_LIST}: {missing[0]} has no colour.")
    elif isinstance(given, list) and len(given) == len(names):
        pairs = dict(zip(names, given, strict=True))
    else:
        number = count(len(given), "colour") if isinstance(given, list) else "no list of colours"
        raise ValueError(f"{CLASS_LIST}: {number}, expected {len(names)}, one a name, each {_HEX}.")
    found = {name: _colour(pairs[name], f"the colour of {name}") for name in names}
    users: dict[int, str] = {}
    for name, colour in found.items():
        if colour in users:
            raise ValueError(
                f"{CLASS_LIST}: {users[colour]} and {name} have the same colour, {as_hex(colour)}."
            )
        users[colour] = name
    return found


def _colour(given: Any, what: str) -> int:
    channels: Sequence[Any] = given if isinstance(given, list) else ()
    if isinstance(given, str):
        try:
            channels = ImageColor.getrgb(given)[:3]
        except ValueError:
            channels = ()
    if not _are_channels(channels):
        raise ValueError(f"{CLASS_LIST}: {what} is {given!r}, expected {_HEX}.")
    red, green, blue = channels
    return int(red) << 16 | int(green) << 8 | int(blue)


@dataclass(frozen=True)
class _Ignored:
    names: set[str]
    values: set[int]
    colours: set[int]


def _ignored(
    given: Any, names: Sequence[str], values: Mapping[int, str], colours: Mapping[str, int]
) -> _Ignored:
    found = _Ignored(set(), {VOID}, set())
    entries = given if isinstance(given, list) else [] if given is None else [given]
    if colours and _are_channels(entries) and any(entry in values for entry in entries):
        raise ValueError(
            f"{CLASS_LIST}: ignore is {entries}, which is a colour or three values: write the "
            'colour as "#rrggbb", or those that are classes by their names.'
        )
    for entry in entries:
        if _is_number(entry):
            if entry in values:
                found.names.add(values[entry])
            found.values.add(entry)
        elif entry in names:
            found.names.add(entry)
        else:
            colour = _colour(entry, "an entry of ignore (no name, no value)")
            found.names.update(name for name in names if colours.get(name) == colour)
            found.colours.add(colour)
    return found


def _background(given: Any, names: Sequence[str]) -> str | None:
    if given is None:
        alike = [name for name in names if name.lower() == BACKGROUND]
        return min(alike, key=BACKGROUND.__ne__, default=None)
    if given not in names:
        hint = did_you_mean(str(given), names)
        raise ValueError(f"{CLASS_LIST}: background is {given}, which is no name.{hint}")
    if given != BACKGROUND and BACKGROUND in names:
        raise ValueError(
            f"{CLASS_LIST}: background is {given}, and another class is called {BACKGROUND}."
        )
    return str(given)
