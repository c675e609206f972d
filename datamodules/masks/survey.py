"""Which values and colours masks contain: to propose a list of classes and to give advice."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from rich.progress import track

from datamodules.listing import JPEG_SUFFIXES
from datamodules.masks.class_list import ClassList
from datamodules.masks.meanings import (
    CLASS_LIST,
    Codes,
    ForeignPixelsError,
    as_hex,
    colours_of,
    in_words,
    values_of,
)
from datamodules.reading import UnreadableImageError, read_values
from utils.palette import BACKGROUND, VOID
from utils.spacing import evenly
from utils.text import count, percent, printable

_MOST_MASKS = 1000
_MOST_CODES, _MOST_OF_JPEG = 256, 2  # in one mask: more cannot be classes
_MOST_USUAL = 40  # in all masks: more are most often shades between classes
_NAMED = 8
_BLENDED = (
    "resized with interpolation or saved as JPEG: make them anew, resized by the nearest pixel and "
    "saved as PNG."
)


@dataclass
class Survey:
    """Counts of pixels in masks by value and by colour.

    Attributes:
        masks: number of masks looked at.
        values: pixels by grey level or palette index, of masks that have these.
        colours: pixels by colour, 0xrrggbb, of 8-bit masks.
        palettes: the palette indices of each colour.
        coloured: number of masks that have only colours.
        rich: the first mask with more values or colours than there can be classes.
        unread: the first mask that could not be read, and why.
    """

    masks: int = 0
    values: Counter[int] = field(default_factory=Counter)
    colours: Counter[int] = field(default_factory=Counter)
    palettes: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    coloured: int = 0
    rich: Path | None = None
    unread: str = ""

    @property
    def by_colour(self) -> bool:
        """Whether colours encode the classes: there is nothing else, or palettes differ."""
        return self.coloured > 0 or any(len(found) > 1 for found in self.palettes.values())

    @property
    def found(self) -> Mapping[int, int]:
        """Pixels by what encodes the classes: colour or value."""
        return self.colours if self.by_colour else self.values

    def doubts(self, expected: int = 0) -> str:
        """Says why these may not be classes; empty if they are few, or few above `expected`."""
        if len(self.found) <= max(_MOST_USUAL, 2 * expected):
            return ""
        return f"So many are most often shades between classes, in masks that were {_BLENDED}"

    def shares(self) -> str:
        """Lists what was found with its share, the most frequent first."""
        total = max(1, sum(self.found.values()))
        spelt = as_hex if self.by_colour else str
        common = sorted(self.found.items(), key=lambda item: (-item[1], item[0]))
        words = [f"{spelt(code)} ({percent(pixels, total)})" for code, pixels in common]
        return ", ".join(words[:_NAMED]) + (f" … ({len(words)})" if len(words) > _NAMED else "")


def survey(masks: Sequence[Path]) -> Survey:
    """Looks at masks, evenly spaced if there are many; unreadable ones are left out."""
    chosen, found = evenly(masks, _MOST_MASKS), Survey()
    with ThreadPoolExecutor() as pool:
        seen = track(pool.map(_look, chosen), "Looking at masks", len(chosen), transient=True)
        for file, codes in zip(chosen, seen, strict=True):
            if isinstance(codes, str):
                found.unread = found.unread or codes
            else:
                _add(found, file, *codes)
    return found


_Counts = dict[int, int]


def _look(file: Path) -> tuple[_Counts | None, _Counts | None, dict[int, int]] | str:
    """Returns pixels by value, by colour, and the index of each palette colour; or an error."""
    try:
        mask = read_values(file)
        values = values_of(mask)
    except UnreadableImageError as error:
        return str(error)
    except ForeignPixelsError as error:
        return f"{printable(file)} {error}"
    colours = colours_of(mask)
    order = {}
    if mask.mode == "P" and values is not None and colours is not None:
        found, first = np.unique(values, return_index=True)
        order = dict(zip(colours.ravel()[first].tolist(), found.tolist(), strict=True))
        if len(order) < len(found):  # several indices share a colour
            order = {}
    return _counted(values), _counted(colours), order


def _counted(codes: Codes | None) -> _Counts | None:
    if codes is None:
        return None
    found, pixels = np.unique(codes, return_counts=True)
    return dict(zip(found.tolist(), pixels.tolist(), strict=True))


def _add(
    found: Survey,
    file: Path,
    values: _Counts | None,
    colours: _Counts | None,
    order: Mapping[int, int],
) -> None:
    most = _MOST_OF_JPEG if file.suffix.lower() in JPEG_SUFFIXES else _MOST_CODES
    if max(len(values or ()), len(colours or ())) > most:
        found.rich = found.rich or file
        return
    found.masks += 1
    found.coloured += values is None
    found.values.update(values or {})
    found.colours.update(colours or {})
    for colour, index in order.items():
        found.palettes[colour].add(index)


def proposal(found: Survey) -> str:
    """Returns a `classes.yaml` for what was found, with names for the user to replace.

    Raises:
        ValueError: what was found cannot be classes.
    """
    negative = _negative(found)
    codes = [code for code in sorted(found.found) if code not in negative]
    void = [] if found.by_colour or len(codes) < 3 or VOID not in codes else [VOID]
    codes = [code for code in codes if code not in void]
    void = [*negative, *void]
    if found.rich or not 2 <= len(codes) <= VOID:
        raise ValueError(_no_classes(found, len(codes)))
    total = sum(found.found.values())
    lines = ["# What the masks hold. Put the names of your classes here and start again.", "names:"]
    regular = found.by_colour or codes == list(range(len(codes)))
    for number, code in enumerate(codes):
        name = BACKGROUND if code == 0 else f"class {number if regular else code}"
        key = "- " if regular else f"{code}: "
        lines.append(f"  {key}{name}  # {percent(found.found[code], total)} of the pixels")
    if found.by_colour:
        lines += ["colours:", *(f'  - "{as_hex(code)}"' for code in codes)]
    if void:
        share = percent(sum(found.found[code] for code in void), total)
        lines.append(f"ignore: {void if len(void) > 1 else void[0]}  # {share} of the pixels")
    lines += ['# ignore: [VALUE, "#COLOUR", NAME]  what counts for nothing'] * (not void)
    lines += [f"# background: NAME  what is no object, if it is not called {BACKGROUND}"]
    return "\n".join(lines) + "\n"


def _negative(found: Survey) -> list[int]:
    """Returns negative values, which cannot be classes: -1 usually means void."""
    return [] if found.by_colour else sorted(value for value in found.values if value < 0)


def _no_classes(found: Survey, number: int) -> str:
    if found.unread and not (found.masks or found.rich):
        return f"None of the masks can be read, first: {found.unread}"
    if found.rich:
        is_jpeg = found.rich.suffix.lower() in JPEG_SUFFIXES
        why = f"{_RESAVED}." if is_jpeg else f"It is no mask, or masks were {_BLENDED}"
        return f"{found.rich} holds more values or colours than classes can be. {why}"
    return f"The masks hold {count(number, 'class')} ({found.shares()}), expected 2 to {VOID}."


_RESAVED = "JPEG changes the colours of masks: they have to be PNGs from the beginning"


def advice(found: Survey, classes: ClassList, masks: Sequence[Path]) -> str:
    """Says how masks and a list of classes could be made to fit; empty if no mask was read."""
    if not (found.found or found.rich):
        return ""
    if any(mask.suffix.lower() in JPEG_SUFFIXES for mask in masks):
        return f"{_RESAVED}."
    if found.rich:
        return f"{_no_classes(found, 0)}"
    said = f"All masks hold: {found.shares()}."
    if doubts := found.doubts(len(classes.written)):
        return f"{said} {doubts}"
    if found.by_colour:
        return f"{said} Each needs a name with its colour in {CLASS_LIST}, or `ignore`."
    negative = _negative(found)
    codes = [code for code in sorted(found.values) if code not in (*negative, VOID)]
    beside = f" and `ignore: {negative}`" if negative else ""
    names = list(classes.written.values())
    whole = [*codes, VOID] if VOID in found.values else codes
    for values in (codes, whole):
        if len(values) == len(names) and values != list(range(len(names))):
            written = f"{_flow(values, names)}{beside}"
            return f"{said} If these are the classes, write in {CLASS_LIST}: {written}"
    if codes[:1] == [0] and len(codes) == len(names) + 1:
        return (
            f"{said} If 0 is no class, write in {CLASS_LIST}: {_flow(codes[1:], names)} and "
            f"`ignore: {[0, *negative] if negative else 0}`; if it is, its name is missing."
        )
    return (
        f"{said} {len(names)} names stand for {in_words(sorted(classes.written))}: name "
        f"every value in {CLASS_LIST} (`names: {{VALUE: NAME, …}}`), or list it in `ignore`"
        + (f": `ignore: {negative}`, as no class is negative." if negative else ".")
    )


def _flow(values: Sequence[int], names: Sequence[str]) -> str:
    mapping = dict(zip(values, names, strict=True))
    flow = yaml.safe_dump(mapping, default_flow_style=True, sort_keys=False, width=10**6)
    return f"`names: {flow.strip()}`"
