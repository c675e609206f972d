"""Finds experiments, studies and runs by name. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from config.convert import ConfigError, read_yaml, shown, suggestion
from utils.nested import merged

CONFIG_DIR = Path(__file__).parent


def find_experiment(name: str, folder: str = "experiments") -> Path:
    """Returns the YAML file of a name or path, in `experiments` or `studies`.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    for candidate in (Path(name), CONFIG_DIR / folder / f"{name}.yaml"):
        if _is_file(candidate):
            return candidate
    known = known_experiments(folder)
    what = "study" if folder == "studies" else "experiment"
    near = suggestion(name, known) or f" Known: {', '.join(known)}."
    raise ConfigError(f"There is no {what} {shown(name)}.{near} A YAML file works too.")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no path at all: too long, or with a null byte
        return False


def known_experiments(folder: str = "experiments") -> list[str]:
    """Returns the names in `experiments` or `studies`."""
    return sorted(file.stem for file in (CONFIG_DIR / folder).glob("*.yaml"))


def read_experiment(name: str) -> dict[str, Any]:
    """Returns the settings of an experiment, over those of the one it `extends`.

    Raises:
        ConfigError: there is no such experiment, or it extends itself.
    """
    chain: list[Path] = []
    settings: dict[str, Any] = {}
    following: str | None = name
    while following:
        file = find_experiment(following)
        if file in chain:
            circle = " extends ".join(each.stem for each in [*chain, file])
            raise ConfigError(f"{file}: {circle}: an experiment cannot extend itself.")
        chain.append(file)
        content = read_yaml(file)
        following = content.pop("extends", None)
        if not isinstance(following, str | None):
            raise ConfigError(
                f"{file}: extends {shown(following)}: expected the name of an experiment."
            )
        settings = merged(content, settings)
    return settings


def find_run(run: str, runs_dir: str) -> Path:
    """Returns the folder of a run given by name, by `run:NAME` or by path.

    Raises:
        ConfigError: no such run.
    """
    name = run.removeprefix("run:")
    for candidate in (Path(runs_dir) / name, Path(name)):
        if _is_file(candidate / "hparams.yaml"):
            return candidate
    known = sorted(file.parent.name for file in Path(runs_dir).glob("*/hparams.yaml"))
    raise ConfigError(
        f"There is no run {shown(name)} in {runs_dir}/.{suggestion(name, known)} "
        f"Known: {', '.join(known[-8:]) or 'none'}."
    )


def newest_unfinished(runs_dir: str) -> Path:
    """Returns the run folder with the newest last.ckpt that did not finish.

    Raises:
        ConfigError: every run finished, or there is none.
    """
    files = sorted(Path(runs_dir).glob("*/checkpoints/last.ckpt"), key=lambda f: f.stat().st_mtime)
    for file in reversed(files):
        summary = file.parents[1] / "summary.json"
        if not summary.exists() or '"status": "finished"' not in summary.read_text():
            return file.parents[1]
    raise ConfigError(
        f"--run.resume auto: no unfinished run with a checkpoint in {runs_dir}/. "
        "Use --run.resume none to start a new run."
    )
