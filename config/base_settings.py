"""The settings that the command line overrides: defaults, an experiment's, or those of a run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path

from config.effective import without_ineffective
from config.errors import ConfigError, shown
from config.hparams import Hparams
from config.lookup import damaged, find_run, newest_unfinished, read_experiment, read_settings
from config.settings_tree import at_home, update
from config.validation import check_values

# The architecture, which weights must fit: adopted from the run of `--backbone.weights run:NAME`.
ARCHITECTURE = (
    "name",
    "patch_size",
    "depth",
    "embed_dim",
    "num_heads",
    "mlp_ratio",
    "registers",
    "stem",
    "pool",
)
# Settings of the machine: results stay the same, except for rounding and, with other numbers of
# processes, for BatchNorm in the backbone.
OF_THE_MACHINE = (
    "data.download",
    "data.num_workers",
    "data.feature_cache",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
)


def given_name(text: str) -> str:
    """Returns the name given to an option, after checking that it is not empty."""
    # An unset shell variable; ignored, it would start a training.
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a name, not an empty text")
    return text


def early_options(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the options that determine the defaults of all others.

    Raises:
        ConfigError: one of them has no value.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--task")
    early.add_argument("--experiment", type=given_name)
    early.add_argument("--evaluate", type=given_name)
    early.add_argument("--predict", type=given_name)
    early.add_argument("--backbone.weights", dest="weights")
    early.add_argument("--export", type=given_name)
    early.add_argument("--run.resume", type=given_name, dest="resume", default=Hparams().run.resume)
    early.add_argument("--run.dir", dest="dir")
    try:
        return early.parse_known_args(list(argv))[0]
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}. --help lists all options.") from error


def base_settings(early: argparse.Namespace) -> tuple[Hparams, Path | None]:
    """Returns the settings that apply unless the command line overrides them.

    Args:
        early: see `early_options`.

    Returns:
        The settings, and the folder of the run they come from, if any.

    Raises:
        ConfigError: there is no such experiment or run, or its settings are impossible.
    """
    hparams = Hparams()
    hparams.run.dir = at_home(hparams.run.dir)
    resumed = None if early.resume == "none" else early.resume
    again = resumed or early.evaluate or early.predict or early.export
    if early.experiment and again:
        raise ConfigError(f"--experiment has no effect: {shown(again)} keeps its own settings.")
    settings = read_experiment(early.experiment) if early.experiment else {}
    source = f"experiment {early.experiment}"
    named = early.weights or update(deepcopy(hparams), settings, source).backbone.weights
    runs_dir = early.dir or hparams.run.dir
    _adopt_backbone(hparams, named, runs_dir)
    check_values(update(hparams, settings, source), source)
    if not again:
        return hparams, None
    run = newest_unfinished(runs_dir) if resumed == "auto" else find_run(again, runs_dir)
    _take_settings(hparams, run)
    return without_ineffective(hparams), run


def _take_settings(hparams: Hparams, run: Path) -> None:
    settings, file = read_settings(run), run / "hparams.yaml"
    try:
        check_values(update(hparams, settings, str(file)))
    except ConfigError as error:  # truncated, edited, or from another version
        unless = (
            "unless another version wrote it, whose commit environment.json names, or a script "
            "that adds parts of its own"
        )
        raise damaged(file, f"{str(error).rstrip('.')}; {unless}") from error


def _adopt_backbone(hparams: Hparams, weights: str, runs_dir: str) -> None:
    """Takes over the architecture of the run that `run:NAME` weights come from."""
    if not str(weights).startswith("run:"):  # an experiment may give anything
        return
    try:
        run = find_run(weights, runs_dir)
    except ConfigError:
        return  # the loader says what is missing
    backbone = read_settings(run).get("backbone", {})
    if isinstance(backbone, Mapping):
        backbone = {leaf: backbone[leaf] for leaf in ARCHITECTURE if leaf in backbone}
    check_values(update(hparams, {"backbone": backbone}, str(run)), str(run))
