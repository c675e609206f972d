"""Turns a study file into runs, ordered so that each comes after those it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.commands.study.rows import (
    LINES,
    TEXT,
    Row,
    check_keys,
    experiment_settings,
    in_order,
    needed,
    read_figure,
    read_row,
    with_needed,
)
from agents.commands.study.runs import BESIDE_WHAT, Run, Study
from config.base_settings import ARCHITECTURE
from config.command_line import (
    as_command_line,
    as_words,
    check_paths,
    options,
    typed,
)
from config.effective import active_settings
from config.errors import ConfigError, shown
from config.hparams import Hparams
from config.lookup import find_experiment
from config.parsing import Command, parse
from config.resolve import choose_names
from config.rules import unmet
from config.settings_tree import set_leaf, unfolded, update
from config.yaml_files import expanded, read_yaml
from utils.nested import flat, nested

_STUDY_KEYS: dict[str, tuple[type, ...]] = {
    "title": TEXT,
    "about": TEXT,
    "protocol": TEXT,
    "seeds": (int,),
    "metrics": LINES,
    "settings": LINES,
    "rows": (list,),
    "figures": (list,),
}
# Settings that a run adopts from the run whose weights it starts from.
ADOPTED = frozenset(f"backbone.{leaf}" for leaf in ARCHITECTURE)
_MOST_SEEDS = 1000
_SET_BY_THE_STUDY = {"run.name", "run.seed", "run.resume"}


def load_study(name: str, seeds: int | None, overrides: Sequence[str], runs_dir: str) -> Study:
    """Reads a study and checks the settings of every run.

    Args:
        name: of a file in config/studies, or a path.
        seeds: instead of those of the file.
        overrides: options for all runs, as on a command line; each applies to runs it can affect.
        runs_dir: will contain the study's folder.

    Raises:
        ConfigError: no such study, row, experiment or setting; or rows need each other.
    """
    file = find_experiment(name, "studies")
    content = check_keys(expanded(read_yaml(file), file), _STUDY_KEYS, str(file))
    given = options(overrides)
    common = flat(unfolded(content.get("settings") or {}, str(file)))
    check_paths(common, f"{file}: ")
    for path in {*given, *common} & _SET_BY_THE_STUDY:
        raise ConfigError(f"--{path}: a study names and seeds its runs itself.")
    rows = [read_row(entry, content, file) for entry in content.get("rows") or []]
    if not rows:
        raise ConfigError(f"{file} needs `rows:`, a list with an experiment or a name each.")
    listed = [row.name for row in rows]
    if doubled := [name for name in listed if listed.count(name) > 1]:
        raise ConfigError(f"{file}: two rows are called {doubled[0]}; give one another `name:`.")
    rows = in_order(with_needed(rows, file), file)
    folder = Path(runs_dir) / file.stem
    count = seeds or int(content.get("seeds", 1))
    if not 1 <= count <= _MOST_SEEDS:
        raise ConfigError(f"{file}: seeds {shown(count)}: expected 1 to {_MOST_SEEDS}.")
    plans = _Plans(file, folder, common, given, {row.name for row in rows})
    by_row = [plans.runs(row, count) for row in rows]
    runs = tuple(run for of_seed in zip(*by_row, strict=True) for run in of_seed)
    plans.check_all_used()
    runs = _used(runs, {row.name for row in rows if row.shown})
    in_table = sorted((row for row in rows if row.shown), key=lambda row: listed.index(row.name))
    return Study(
        name=file.stem,
        title=str(content.get("title", file.stem)),
        about=str(content.get("about", "")).strip(),
        protocol=str(content.get("protocol", "")).strip(),
        seeds=count,
        metrics={str(key): str(title) for key, title in (content.get("metrics") or {}).items()},
        rows=(*in_table, *(row for row in rows if not row.shown)),
        figures=tuple(read_figure(entry, rows, file) for entry in content.get("figures") or []),
        runs=runs,
        folder=folder,
        overrides=given,
        asked=name,
    )


def _start(row: Row) -> list[str]:
    return ["--experiment", row.experiment] if row.experiment else []


def _used(runs: Sequence[Run], shown: set[str]) -> tuple[Run, ...]:
    # An overriding --backbone.weights may have made the runs of some rows unnecessary.
    kept: set[str] = set()
    for run in reversed(runs):
        if run.row in shown or any(run.name in other.needs for other in runs if other.name in kept):
            kept.add(run.name)
    return tuple(run for run in runs if run.name in kept)


class _Plans:
    """Makes the runs of rows, and notes which of the common settings had an effect."""

    def __init__(
        self,
        file: Path,
        folder: Path,
        common: Mapping[str, Any],
        overrides: Mapping[str, Sequence[str]],
        rows: set[str],
    ) -> None:
        self.file = file
        self.folder = folder
        self.common = {path: as_words(value) for path, value in common.items()}
        self.overrides = {path: list(words) for path, words in overrides.items()}
        self.rows = rows
        self.used: set[str] = set()

    def runs(self, row: Row, seeds: int) -> list[Run]:
        own = {path: as_words(value) for path, value in row.settings.items()}
        needs = {
            path: name
            for path, name in needed(row)
            if path not in self.overrides and name in self.rows
        }
        own |= {path: [f"run:{name}"] for path, name in needs.items()}
        options = self._effective(row, own)
        settings = flat(
            active_settings(self._parsed(row, [*_start(row), *as_command_line(options)]))
        )
        if str(settings.get("backbone.weights")).startswith("run:"):
            # Filled in from the other run once it exists.
            given = {*experiment_settings(row), *options}
            settings = {p: v for p, v in settings.items() if p not in ADOPTED or p in given}
        machine = {path: w for path, w in options.items() if path.startswith(BESIDE_WHAT)}
        runs = []
        for seed in range(seeds):
            of_seed = {path: f"run:{name}-s{seed}" for path, name in needs.items()}
            place = {"run.dir": [str(self.folder)], "run.name": [f"{row.name}-s{seed}"]}
            place["run.seed"] = [str(seed)]
            words = as_command_line(
                {**place, **options, **{p: [name] for p, name in of_seed.items()}}
            )
            runs.append(
                Run(
                    name=f"{row.name}-s{seed}",
                    row=row.name,
                    seed=seed,
                    needs=tuple(f"{name}-s{seed}" for name in needs.values()),
                    words=(*_start(row), *words),
                    machine_words=tuple(as_command_line(machine)),
                    settings=settings | of_seed,
                )
            )
        return runs

    def _effective(self, row: Row, own: Mapping[str, list[str]]) -> dict[str, list[str]]:
        """Returns the row's options, and the common options that have an effect on it."""
        check_paths(own, f"{self.file}, row {row.name}: ")
        every = {**self.common, **own, **self.overrides}
        options = dict(own)
        for _ in range(2):  # a setting may need another of them to have an effect
            hparams = update(Hparams(), nested(experiment_settings(row)), str(self.file))
            for path, words in options.items():
                set_leaf(hparams, path, typed(words, path))
            hparams = choose_names(hparams)
            options = {
                path: words
                for path, words in every.items()
                if path in own or unmet(hparams, path) is None
            }
        self.used |= set(options)
        return options

    def _parsed(self, row: Row, words: Sequence[str]) -> Hparams:
        try:
            command = parse(words)
        except ConfigError as error:
            raise ConfigError(f"{self.file}, row {row.name}: {error}") from error
        if not isinstance(command, Command):
            raise ConfigError(f"{self.file}, row {row.name}: not a run.")
        return command.hparams

    def check_all_used(self) -> None:
        for path in {**self.common, **self.overrides}:
            if path not in self.used:
                raise ConfigError(f"--{path} has no effect on any run of the study.")
