"""A study: experiments times seeds, run one after the other, ending in one table."""

from __future__ import annotations

import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from config.convert import ConfigError, read_yaml
from config.parsing import find_experiment
from utils.run_folder import RunFolder

_MAIN = Path(__file__).parents[1] / "main.py"
_NOT_RESULTS = ("epochs", "steps", "unreadable_images", "transductive")


def run_study(study: str, seeds: int | None, print_commands: bool, runs_dir: str) -> int:
    """Runs what is missing of a study and prints its table.

    Runs are named `STUDY-EXPERIMENT-sSEED`; finished ones are not run again, so an interrupted
    study is continued by the same command.

    Returns:
        0, or 1 when a run failed.

    Raises:
        ConfigError: no such study or experiment, or a broken study file.
    """
    file = find_experiment(study, "studies")
    content = read_yaml(file)
    experiments = content.get("experiments")
    if not isinstance(experiments, list) or not experiments:
        raise ConfigError(f"{file} must have `experiments:`, a list of experiment names.")
    count = seeds or int(content.get("seeds", 1))
    failed = False
    groups: dict[str, list[RunFolder]] = {}
    for experiment in map(str, experiments):
        find_experiment(experiment)
        for seed in range(count):
            name = f"{file.stem}-{Path(experiment).stem}-s{seed}"
            folder = RunFolder(Path(runs_dir) / name)
            groups.setdefault(experiment, []).append(folder)
            command = _command(experiment, seed, folder, runs_dir)
            if print_commands:
                print(shlex.join(command))
            elif folder.read_summary().get("status") != "finished":
                failed |= subprocess.run(command).returncode != 0
    if not print_commands:
        print(f"\n{content.get('title', file.stem)}, {count} seeds\n\n{table(groups)}")
    return int(failed)


def _command(experiment: str, seed: int, folder: RunFolder, runs_dir: str) -> list[str]:
    start = [sys.executable, str(_MAIN), "--run.dir", runs_dir]
    if folder.last.exists():
        return [*start, "--run.resume", folder.name]
    return [*start, "--experiment", experiment, "--run.seed", str(seed), "--run.name", folder.name]


def table(groups: dict[str, list[RunFolder]]) -> str:
    """Returns a Markdown table: one row an experiment, mean ± standard deviation over seeds."""
    results = {
        name: [found for folder in folders if (found := _numbers(folder.read_summary()))]
        for name, folders in groups.items()
    }
    keys = sorted({key for runs in results.values() for run in runs for key in run})
    rows = [["experiment", "runs", *keys], ["---"] * (len(keys) + 2)]
    for name, runs in results.items():
        cells = [_cell([run[key] for run in runs if key in run]) for key in keys]
        rows.append([name, str(len(runs)), *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _numbers(result: dict[str, Any]) -> dict[str, float]:
    if result.get("status") != "finished":
        return {}
    return {
        key: value
        for key, value in result.items()
        if isinstance(value, int | float) and key not in _NOT_RESULTS and key.count("/") < 2
    }


def _cell(values: list[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4g}{spread}"
