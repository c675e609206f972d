"""Suggests what to do after a run: commands to copy, made from its own settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from config import names
from config.command_line import MAIN, as_command_line, as_words
from config.effective import without_ineffective
from config.hparams import Hparams
from config.resolve import choose_names
from config.rules import get_leaf, unmet
from config.settings_tree import leaves, update
from datamodules.sources import ImageSource, LabelledSource, MaskedSource
from utils.imports import load
from utils.nested import nested
from utils.palette import has_background
from utils.run_folder import RunFolder
from utils.text import command_line

_LONGER = 4  # times as many epochs or steps

# Settings that a probe shares with its run: its images, and where it runs.
_SHARED = (
    "data.name",
    "data.root",
    "data.image_size",
    "data.num_workers",
    "run.dir",
    "trainer.accelerator",
    "logger.mode",
)


class Step(NamedTuple):
    """What could be done, and the command that does it."""

    what: str
    command: str


def given_settings(hparams: Hparams) -> dict[str, Any]:
    """Returns the settings a user chose, by dotted path: those that are not the default.

    Args:
        hparams: names that depend on the task may be resolved in it; these were not chosen.
    """
    plain = Hparams()
    plain.data.name = hparams.data.name
    known = {leaf.path: leaf.value for leaf in leaves(plain)}
    chosen = {
        leaf.path: leaf.value
        for leaf in leaves(choose_names(plain))
        if leaf.value != known[leaf.path]
    }
    return {
        leaf.path: leaf.value
        for leaf in leaves(hparams)
        if leaf.value not in (leaf.default, chosen.get(leaf.path, leaf.default))
    }


def training_command(settings: Mapping[str, Any]) -> str:
    """Returns the command that trains with settings by dotted path, less those without effect."""
    hparams = without_ineffective(update(Hparams(), nested(settings), "settings"))
    words = {
        leaf.path: as_words(leaf.value) for leaf in leaves(hparams) if leaf.value != leaf.default
    }
    return _line(as_command_line(words))


def resume_command(folder: RunFolder, given: Hparams, advice: str = "") -> str:
    """Returns the command with which a run goes on.

    Args:
        folder: of the run.
        given: its settings as the user gave them.
        advice: options that it needs to go on.
    """
    return f"{_line(['--run.resume', *_found(folder, given)])} {advice}".rstrip()


def next_steps(
    folder: RunFolder,
    given: Hparams,
    hparams: Hparams,
    source: ImageSource,
    tried_out: Hparams | None = None,
) -> list[Step]:
    """Returns what to do after a run that has finished.

    Args:
        folder: of the run.
        given: its settings as the user gave them.
        hparams: the same, resolved.
        source: its images.
        tried_out: settings of the run that it tried out; None: it was no try-out.
    """
    if tried_out is not None:
        trains = unmet(tried_out, "trainer.max_steps") is None
        what = "train" if trains else "measure all images"
        first = [Step(what, training_command(_own(tried_out)))]
        given = tried_out
    else:
        first = _train_longer(folder, given, hparams)
    steps = []
    if hparams.task == "segmentation":
        steps += _of_segmentation(folder, given, hparams, source)
    elif hparams.task == "linear_probe":
        run, *place = _found(folder, given)
        words = ["--compare", run, "RUN", *place]
        steps.append(Step("compare it with another run", _line(words)))
    else:
        steps += _of_pretraining(folder, given, source)
    return [*first, *steps]


def _train_longer(folder: RunFolder, given: Hparams, hparams: Hparams) -> list[Step]:
    length = "trainer.max_steps" if given.trainer.max_steps else "trainer.max_epochs"
    if unmet(hparams, length):
        return []
    longer = {length: _LONGER * int(get_leaf(hparams, length))}
    if given.run.resume != "none":  # its first settings are only in its file
        words = as_command_line({path: as_words(value) for path, value in longer.items()})
        return [Step("train longer", _line(["--experiment", str(folder.hparams), *words]))]
    return [Step("train longer", training_command(_own(given) | longer))]


def _of_pretraining(folder: RunFolder, given: Hparams, source: ImageSource) -> list[Step]:
    own, steps = _own(given), []
    yours = {"data.name": "image_folder", "data.root": "FOLDER"}
    if given.run.resume == "none" and given.data.name != yours["data.name"]:
        of_data = ("data.", "trainer.max_")  # which images, and how long
        method = {path: value for path, value in own.items() if not path.startswith(of_data)}
        steps.append(Step("train on your images", training_command(method | yours)))
    before = len(steps)
    shared = {path: own[path] for path in _SHARED if path in own}
    shared["backbone.weights"] = f"run:{folder.called(given.run.dir)}"
    segment = {"task": "segmentation", "backbone.freeze": True}
    probe: dict[str, Any] = {"task": "linear_probe"}
    if isinstance(source, MaskedSource):
        command = training_command(shared | segment)
        steps.append(Step("see what it has learnt, pixel by pixel", command))
    if has_classes(source):
        command = training_command(shared | probe)
        steps.append(Step("see what it has learnt, in one number", command))
    if len(steps) == before:  # neither masks nor classes: probe with other images
        other = {path: value for path, value in shared.items() if not path.startswith("data.")}
        probe |= {"data.name": "cifar10", "data.download": True}
        steps.append(Step("see what it has learnt", training_command(other | probe)))
    return steps


def _of_segmentation(
    folder: RunFolder, given: Hparams, hparams: Hparams, source: ImageSource
) -> list[Step]:
    run, *place = _found(folder, given)
    label = ["--predict", run, "--images", "FOLDER", *place]
    steps = [Step("label your images", _line(label))]
    for name, target in names.PROTOCOLS.items():
        fits = isinstance(source, MaskedSource) and (
            has_background(source.classes) or not load(target).needs_background
        )
        if fits and name != hparams.segmentation.protocol:
            words = ["--evaluate", run, "--segmentation.protocol", name, *place]
            steps.append(Step("judge it by the other protocol", _line(words)))
    return steps


def has_classes(source: ImageSource) -> bool:
    """Whether images are of at least two classes."""
    if not isinstance(source, LabelledSource):
        return False
    try:
        classes, _ = source.labels("train")
    except (ValueError, OSError):  # no class folders, or images removed since
        return False
    return len(classes) > 1


def _own(given: Hparams) -> dict[str, Any]:
    # A new run gets a new name.
    found = given_settings(given)
    return {path: value for path, value in found.items() if path not in ("run.name", "run.resume")}


def _found(folder: RunFolder, given: Hparams) -> list[str]:
    """Returns the arguments by which a command finds a run: its name, and `--run.dir` if needed."""
    place = given.run.dir
    elsewhere = [] if place == Hparams().run.dir else ["--run.dir", place]
    return [folder.called(place), *elsewhere]


def _line(words: list[str]) -> str:
    here = Path.cwd().samefile(MAIN.parent)
    return command_line("python", MAIN.name if here else str(MAIN), *words)
