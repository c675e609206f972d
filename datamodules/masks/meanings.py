"""What the pixels of masks mean: from grey levels, palette indices or colours to labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from utils.palette import VOID, hex_colour
from utils.text import count, percent

Codes = NDArray[np.int64]  # (H, W): grey levels or palette indices, or colours as 0xrrggbb

CLASS_LIST = "classes.yaml"
_INDEXED = ("P", "L")
_WITHOUT_COLOURS = ("I", "F")  # and I;16, with grey levels beyond 255
_BITS = "1"  # Pillow's mode of 1-bit masks
_NAMED = 5  # values that a message names
_WHITE = 0xFFFFFF
_GREY = 0x010101  # times its level
_RAMP = [level for level in range(256) for _ in "rgb"]  # a palette of grey levels


class ForeignPixelsError(ValueError):
    """A mask holds values or colours without a meaning; its message follows the file's name."""


class Meanings(ABC):
    """How masks become labels 0 … C - 1, and 255 for void."""

    @abstractmethod
    def labels(self, mask: Image.Image) -> NDArray[np.uint8]:
        """Returns the labels of a decoded mask, `(H, W)`.

        Raises:
            ForeignPixelsError: it holds values or colours without a meaning.
        """

    @property
    @abstractmethod
    def facts(self) -> Any:
        """Everything that determines the labels, for JSON: caches of labels depend on it."""


@dataclass(frozen=True)
class IndexMeanings(Meanings):
    """The meanings of palette indices or 8-bit grey levels.

    Attributes:
        table: label of each value that may occur.
        expected: describes these values in messages.
    """

    table: Mapping[int, int]
    expected: str = "those of the data set"

    @classmethod
    @cache
    def of_labels(cls, num_classes: int) -> IndexMeanings:
        """Values are labels, and 255 is void."""
        table = {label: label for label in (*range(num_classes), VOID)}
        return cls(table, f"0 to {num_classes - 1}")

    def labels(self, mask: Image.Image) -> NDArray[np.uint8]:
        """See `Meanings.labels`."""
        if mask.mode not in _INDEXED:
            raise ForeignPixelsError(
                f"is a mask in mode {mask.mode}: expected labels as a palette or grey PNG, not "
                "colours."
            )
        labels = self._by_value.take(np.asarray(mask), mode="wrap")  # the quickest
        if (labels == self._foreign).any():
            held = (value for value, pixels in enumerate(mask.histogram()) if pixels)
            foreign = [value for value in held if value not in self.table]
            raise ForeignPixelsError(
                f"has labels {foreign[:_NAMED]}: expected {self.expected}, or "
                f"{VOID} for void. These are the masks of another data set."
            )
        return labels

    @cached_property
    def _foreign(self) -> int:
        # A value that is no label; -1 if all 256 values are labels.
        return min({*range(256)} - {*self.table.values()}, default=-1)

    @cached_property
    def _by_value(self) -> NDArray[np.uint8]:
        return np.array([self.table.get(v, self._foreign) for v in range(256)], np.uint8)

    @property
    def facts(self) -> Any:
        """See `Meanings.facts`."""
        return sorted(self.table.items())


@dataclass(frozen=True)
class DeclaredMeanings(Meanings):
    """The meanings that a list of classes declares, for masks of any kind.

    A mask is read by its colours if all of them are declared, else by its values. A grey mask is
    first read by its levels: black may be the colour of another class than the one of level 0. A
    1-bit mask is read by colour only if both black and white are declared.

    Attributes:
        values: label of each grey level or palette index.
        colours: label of each colour, as 0xrrggbb.
    """

    values: Mapping[int, int]
    colours: Mapping[int, int] = field(default_factory=dict)

    def labels(self, mask: Image.Image) -> NDArray[np.uint8]:
        """See `Meanings.labels`."""
        colours = colours_of(mask) if self.colours else None
        values, problem = values_of(mask), ""
        if values is not None and (mask.mode == _BITS or is_in_levels(mask)):
            table = self._of_bits if mask.mode == _BITS else self._of_levels
            labels, foreign = look_up(values, table)
            if not len(foreign):
                return labels
        if colours is not None:
            labels, foreign = look_up(colours, self.colours)
            if not len(foreign):
                return labels
            if values is None or len(foreign) < colours.size:
                problem = self._foreign_colours(foreign, colours.size)
        if values is not None:
            labels, foreign = look_up(values, self.values)
            if not len(foreign):
                return labels
            problem = problem or self._foreign_values(foreign, values.size)
        raise ForeignPixelsError(
            problem
            or f"is a mask in colours (mode {mask.mode}), and {CLASS_LIST} gives none: "
            "add `colours`, one for each name."
        )

    @cached_property
    def _of_levels(self) -> Mapping[int, int]:
        """The labels of grey levels.

        If all declared colours are grey, they are the levels. Otherwise the declared values are,
        without 255 if white is a class: such a pixel is white, not void.
        """
        if self.colours and all(colour == (colour & 255) * _GREY for colour in self.colours):
            return {colour & 255: label for colour, label in self.colours.items()}
        white_is_a_class = self.colours.get(_WHITE, VOID) != VOID
        unnamed = {VOID} if white_is_a_class and self.values.get(VOID) == VOID else set()
        return {value: label for value, label in self.values.items() if value not in unnamed}

    @cached_property
    def _of_bits(self) -> Mapping[int, int]:
        """The labels of 0 and 1 in a 1-bit mask."""
        shown = {0: 0, 1: _WHITE}
        if all(colour in self.colours for colour in shown.values()):
            return {value: self.colours[colour] for value, colour in shown.items()}
        return self.values

    def _foreign_colours(self, foreign: Codes, pixels: int) -> str:
        found, share = np.unique(foreign), percent(len(foreign), pixels)
        return (
            f"has {count(len(found), 'colour')} that {CLASS_LIST} does not have "
            f"({share} of its pixels): {', '.join(map(as_hex, found[:_NAMED].tolist()))}."
        )

    def _foreign_values(self, foreign: Codes, pixels: int) -> str:
        found, share = np.unique(foreign), percent(len(foreign), pixels)
        return (
            f"has values that {CLASS_LIST} does not name ({share} of its pixels): "
            f"{in_words(found.tolist())}."
        )

    @property
    def facts(self) -> Any:
        """See `Meanings.facts`."""
        tables = (self.values, self.colours, self._of_levels, self._of_bits)
        return [sorted(table.items()) for table in tables]


def look_up(codes: Codes, table: Mapping[int, int]) -> tuple[NDArray[np.uint8], Codes]:
    """Returns the label of each pixel, `(H, W)`, and the codes of pixels that have none, `(n,)`."""
    known = np.array(sorted(table), np.int64)
    places = np.searchsorted(known, codes).clip(max=len(known) - 1)
    labels = np.array([table[code] for code in known.tolist()], np.uint8)
    return labels[places], codes[known[places] != codes]


def values_of(mask: Image.Image) -> Codes | None:
    """Returns grey levels, palette indices, or the 0 and 1 of a 1-bit mask; None for a colour mask.

    A mask in RGB is grey if its three channels are equal.

    Raises:
        ForeignPixelsError: its numbers are not whole.
    """
    if mask.mode in ("PA", "LA"):
        return np.asarray(mask)[..., 0].astype(np.int64)
    pixels = np.asarray(mask)
    if pixels.ndim == 2:
        if mask.mode == "F" and not (np.isfinite(pixels) & (pixels == np.floor(pixels))).all():
            raise ForeignPixelsError("has numbers that are not whole: these cannot be labels.")
        return pixels.astype(np.int64)
    grey = mask.mode in ("RGB", "RGBA") and (pixels[..., :3] == pixels[..., :1]).all()
    return pixels[..., 0].astype(np.int64) if grey else None


def is_in_levels(mask: Image.Image) -> bool:
    """Whether a mask is 8-bit grey, or its palette maps each index to the grey of that level."""
    palette = (mask.getpalette() or []) if mask.mode == "P" else []
    is_ramp = len(palette) > len("rgb") and palette == _RAMP[: len(palette)]
    return mask.mode == "L" or is_ramp


def colours_of(mask: Image.Image) -> Codes | None:
    """Returns colours as 0xrrggbb; None for grey levels of more than 8 bits."""
    if mask.mode.startswith(_WITHOUT_COLOURS):
        return None
    pixels = np.asarray(mask.convert("RGB"), np.int64)
    return pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]


def as_hex(code: int) -> str:
    """Returns a colour, given as 0xrrggbb, as `#rrggbb`."""
    return hex_colour((code >> 16, code >> 8 & 255, code & 255))


def in_words(values: Iterable[int]) -> str:
    """Writes sorted values, runs of more than two as `3 to 9`; cut short if there are many."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1][1:] = [value]
        else:
            runs.append([value])
    words = [
        ", ".join(map(str, run)) if run[-1] - run[0] < 2 else f"{run[0]} to {run[-1]}"
        for run in runs
    ]
    return ", ".join(words[:_NAMED]) + (" …" if len(words) > _NAMED else "")
