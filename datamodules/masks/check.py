"""Looks at the masks once before training, so that a bad one does not end a run after hours."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.utilities import rank_zero_only
from rich.progress import track

from datamodules.digests import facts_digest, file_facts
from datamodules.first_look import warn_of_several
from datamodules.masks.meanings import ForeignPixelsError
from datamodules.masks.reading import FilePair, Fit, read_pair
from datamodules.reading import ImageItem, UnreadableImageError
from datamodules.sources import MaskedSource
from utils.console import console
from utils.files import write_atomically
from utils.palette import VOID
from utils.spacing import evenly
from utils.text import count, percent, printable

# At most so many masks are looked at, evenly spaced.
MAX_MASKS = 5000
_FORMAT = 3  # since labels in colours of 16 bits are refused
_NAMED = 8  # classes whose shares are printed


@dataclass(frozen=True)
class Census:
    """What a list of masks contains.

    Attributes:
        pixels: number of pixels of each label, void last.
        fits: names of images with an EXIF orientation, by how their masks fit them.
    """

    pixels: tuple[int, ...]
    fits: dict[str, list[str]]


def check_masks(
    source: MaskedSource,
    pairs: Sequence[FilePair],
    what: str,
    *,
    judged: Collection[ImageItem],
    cache: Path,
    threads: int = 1,
) -> Census:
    """Checks that masks can be read, fit their images and have known labels; prints their shares.

    Args:
        source: says what values of masks mean.
        pairs: image and mask files.
        what: the name of the images in messages.
        judged: images of an evaluation, which needs every one: here an unreadable image is an
            error, while training skips it.
        cache: folder that keeps the result, until a file changes.
        threads: number of threads that read files.

    Raises:
        ValueError: some masks cannot be used, or no image can be read (names the first); or the
            masks hold a single class, or none, and the rest is void.
    """
    chosen = evenly(pairs, MAX_MASKS)
    warn_of_several([mask for _, mask in pairs], f"the masks of the {what}")
    known = cache / f"masks-{_digest(source, chosen, judged)}.json"
    census = _recalled(known)
    if census is None:
        census = _take(source, chosen, what, judged, threads)
        with suppress(OSError):  # then the next run looks at the masks again
            cache.mkdir(parents=True, exist_ok=True)
            write_atomically(known, json.dumps(asdict(census)))
    _say(census, source.classes, f"{len(chosen):,} of {len(pairs):,} {what}")
    _check_classes(source, census, chosen, what)
    return census


def _digest(source: MaskedSource, pairs: Sequence[FilePair], judged: Collection[ImageItem]) -> str:
    meanings = None if source.meanings is None else source.meanings.facts
    files = file_facts([file for pair in pairs for file in pair if file.exists()])
    needed = [image in judged for image, _ in pairs]
    return facts_digest([_FORMAT, source.classes, meanings, needed, files])


def _recalled(file: Path) -> Census | None:
    try:
        found = json.loads(file.read_text())
        return Census(tuple(found["pixels"]), found["fits"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


class _Problem(NamedTuple):
    """Why a pair cannot be used.

    Attributes:
        words: the reason, with the name of the file.
        is_foreign: whether its mask holds values that are no class.
        is_passed_over: whether it is an unreadable image, which training skips.
    """

    words: str
    is_foreign: bool = False
    is_passed_over: bool = False


def _take(
    source: MaskedSource,
    pairs: Sequence[FilePair],
    what: str,
    judged: Collection[ImageItem],
    threads: int,
) -> Census:
    pixels = np.zeros(VOID + 1, np.int64)
    fits: dict[str, list[str]] = {fit.name: [] for fit in Fit}
    problems: list[_Problem] = []
    pool = ThreadPoolExecutor(threads)
    try:
        looked_at = pool.map(lambda pair: _look(source, pair, pair[0] in judged), pairs)
        seen = track(looked_at, f"Checking masks of {what}", len(pairs), transient=True)
        for (image, _), found in zip(pairs, seen, strict=True):
            if isinstance(found, _Problem):
                problems.append(found)
                continue
            pixels += found[0]
            if found[1] is not Fit.DISPLAYED:
                fits[found[1].name].append(printable(image))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the other masks
    _refuse(source, pairs, what, problems)
    return Census((*pixels[: len(source.classes)].tolist(), int(pixels[VOID])), fits)


def _look(
    source: MaskedSource, pair: FilePair, is_judged: bool
) -> tuple[NDArray[np.int64], Fit] | _Problem:
    """Returns the number of pixels of each label, 0 to 255, and how the mask fits the image."""
    try:
        found = read_pair(*pair, len(source.classes), source.meanings)
    except UnreadableImageError as error:
        words = f"{error} cannot be read" if is_judged else str(error)
        return _Problem(words, is_passed_over=not is_judged)
    except ValueError as error:
        return _Problem(str(error), is_foreign=isinstance(error, ForeignPixelsError))
    return np.bincount(found.labels.numpy().ravel(), minlength=VOID + 1), found.fit


def _refuse(
    source: MaskedSource, pairs: Sequence[FilePair], what: str, problems: Sequence[_Problem]
) -> None:
    """Ends the run if there are pairs it cannot do without, and names the first ones.

    Raises:
        ValueError: some cannot be used, or no image can be read.
    """
    if unusable := [each.words for each in problems if not each.is_passed_over]:
        has_foreign = any(each.is_foreign for each in problems)
        advice = source.advice([mask for _, mask in pairs]) if has_foreign else ""
        raise ValueError(
            f"{len(unusable)} of {len(pairs)} masks or images cannot be used ({what}): "
            f"{' | '.join(unusable[:3])} {advice}".rstrip()
        )
    if problems and len(problems) == len(pairs):
        raise ValueError(
            f"None of {count(len(pairs), 'image')} can be read ({what}), first: "
            f"{problems[0].words}. Is the data set complete?"
        )


def _check_classes(
    source: MaskedSource, census: Census, pairs: Sequence[FilePair], what: str
) -> None:
    """Refuses masks with a single class and void, on which any network is perfect.

    Raises:
        ValueError: the masks are like that, or all void.
    """
    *labelled, void = census.pixels
    occurring = [name for name, pixels in zip(source.classes, labelled, strict=True) if pixels]
    if len(occurring) > 1:
        return
    problem = f"The masks of the {what} hold nothing but {occurring[0]}" if occurring else ""
    if occurring and not void:
        console.warning("warning: %s: there is nothing to tell apart, whatever the score.", problem)
        return
    share = percent(void, sum(census.pixels))
    beside = f" and pixels that count for nothing ({share})"
    advice = source.advice([mask for _, mask in pairs])
    said = f"{problem}{beside}" if occurring else f"The masks of the {what} are void all over"
    raise ValueError(f"{said}. {advice}".rstrip())


@rank_zero_only
def warn_of_unseen(classes: Sequence[str], judged: Census, learnt: Census, what: str) -> None:
    """Warns of classes that are evaluated but cannot be learnt: no training mask has them.

    Args:
        classes: names by label.
        judged: census of the masks of the evaluation.
        learnt: census of the training masks.
        what: the name of the evaluated images in messages.
    """
    *pairs, _ = zip(judged.pixels, learnt.pixels, strict=True)  # the last is void
    unseen = [
        name for name, (here, there) in zip(classes, pairs, strict=True) if here and not there
    ]
    if unseen:
        named = ", ".join(unseen[:_NAMED]) + (" …" if len(unseen) > _NAMED else "")
        console.warning(
            "warning: %s of the %s in none of the training masks that were looked at: not learnt, "
            "it counts as missed. %s.",
            *(count(len(unseen), "class"), what, named),
        )


@rank_zero_only
def _say(census: Census, classes: tuple[str, ...], which: str) -> None:
    *labelled, void = census.pixels
    total = max(1, sum(labelled))
    by_size = sorted(zip(labelled, classes, strict=True), reverse=True)
    shares = [f"{name} {percent(number, total)}" for number, name in by_size if number]
    absent = [name for number, name in by_size if not number]
    rest = f" … {shares[-1]} ({len(shares)} classes)" if len(shares) > _NAMED else ""
    has = "class has" if len(absent) == 1 else "classes have"
    lacking = f"; {len(absent)} {has} none, as {absent[-1]}" if absent else ""
    console.info(
        "masks: %s: %s%s%s; void %s of all pixels.",
        *(which, ", ".join(shares[:_NAMED]), rest, lacking, percent(void, total + void)),
    )
    for fit in (Fit.STORED, Fit.EITHER):
        if found := census.fits[fit.name]:
            console.warning(
                "warning: of %s with an EXIF orientation the masks fit %s. First: %s",
                *(count(len(found), "image"), fit.value, found[0]),
            )
