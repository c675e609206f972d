"""Finds experiments, studies and runs by name. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from config.errors import ConfigError, shown, suggestion
from config.hparams import Hparams
from config.resolve import choose_names
from config.rules import unmet
from config.settings_tree import leaves, unfolded, update
from config.yaml_files import expanded, read_yaml
from utils.console import console
from utils.files import read_json
from utils.nested import flat, merged

CONFIG_DIR = Path(__file__).parent


def find_experiment(name: str, folder: str = "experiments") -> Path:
    """Returns the YAML file for a name in `experiments` or `studies`, or for a path.

    Raises:
        ConfigError: there is none; the message lists known names.
    """
    for candidate in (Path(name), CONFIG_DIR / folder / f"{name}.yaml"):
        if _asked(Path.is_file, candidate):
            return candidate
    known = known_experiments(folder)
    what = "study" if folder == "studies" else "experiment"
    near = suggestion(name, known) or f" Known: {', '.join(known)}."
    raise ConfigError(f"There is no {what} {shown(name)}.{near} A YAML file works too.")


def _asked(is_kind: Callable[[Path], bool], path: Path) -> bool:
    """Calls `is_file` or `is_dir` for any text, even if it is not a valid path."""
    try:
        return is_kind(path)
    except (OSError, ValueError):  # not a valid path: too long, or with a null byte
        return False


def known_experiments(folder: str = "experiments") -> list[str]:
    """Returns the names in `experiments` or `studies`."""
    return sorted(file.stem for file in (CONFIG_DIR / folder).glob("*.yaml"))


def read_experiment(name: str) -> dict[str, Any]:
    """Returns the settings of an experiment, merged into those of the one it `extends`.

    Raises:
        ConfigError: there is no such experiment, it extends itself, or needs an environment
            variable that is not set.
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
        content = expanded(read_yaml(file), file)
        following = content.pop("extends", None)
        if not isinstance(following, str | None):
            raise ConfigError(
                f"{file}: extends {shown(following)}: expected the name of an experiment."
            )
        settings = merged(unfolded(content, str(file)), settings)
    return settings


def find_run(run: str, runs_dir: str) -> Path:
    """Returns the folder of a run given by name, by `run:NAME` or by path.

    Raises:
        ConfigError: there is no such run.
    """
    name = run.removeprefix("run:")
    places = (Path(runs_dir) / name, Path(name))
    for candidate in places:
        if _is_run(candidate):
            # Absolute, because `.` has no name for messages.
            return candidate.resolve() if candidate.name in ("", "..") else candidate
    begun = next((each for each in places if _asked(Path.is_dir, each / "checkpoints")), None)
    if begun:
        raise ConfigError(
            f"{begun} was stopped before it had written its settings: start it again with "
            f"--run.name {begun.name} --run.dir {begun.parent} and the options it had."
        )
    around = (each for place in places if _asked(Path.exists, place) for each in place.parents)
    if whole := next(filter(_is_run, around), None):
        raise ConfigError(f"{shown(name)} is a part of a run. Give the run itself: {whole}")
    known = known_runs(runs_dir)
    raise ConfigError(
        f"There is no run {shown(name)} in {runs_dir}/ (--run.dir).{suggestion(name, known)} "
        f"Known: {', '.join(known[-8:]) or 'none'}."
    )


def known_runs(runs_dir: str) -> list[str]:
    """Returns the names of the runs in a folder."""
    return sorted(file.parent.name for file in Path(runs_dir).glob("*/hparams.yaml"))


def _is_run(folder: Path) -> bool:
    return any(_asked(Path.is_file, each) for each in (folder / "hparams.yaml", _last(folder)))


def _last(run: Path) -> Path:
    """Returns a run's last checkpoint, or the previous one if that is missing."""
    last, previous = (run / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    return previous if _asked(Path.exists, previous) and not last.exists() else last


def read_settings(run: Path) -> dict[str, Any]:
    """Returns the settings of a run, from its hparams.yaml, or from its checkpoint if missing.

    Raises:
        ConfigError: hparams.yaml is damaged; says how to get the settings back.
    """
    file = run / "hparams.yaml"
    if not file.exists():
        return _settings_in_checkpoint(run)
    if not file.is_file():
        raise damaged(file, "it is no file")
    try:
        settings = unfolded(read_yaml(file), str(file))
    except ConfigError as error:
        raise damaged(file, str(error)) from error
    if "task" not in settings:
        raise damaged(file, "there is no task in it" if settings else "it is empty")
    return settings


def _settings_in_checkpoint(run: Path) -> dict[str, Any]:
    # Imported here, because importing torch takes seconds.
    from utils.run_checkpoints import map_run_checkpoint, resumable
    from utils.run_folder import RunFolder

    checkpoint = resumable(RunFolder(run))
    if checkpoint is None:
        raise ConfigError(f"{run} has neither hparams.yaml nor a checkpoint.")
    settings = map_run_checkpoint(checkpoint)["hyper_parameters"]
    console.warning("There is no hparams.yaml: the settings are those in %s.", checkpoint)
    # As in hparams.yaml, without how the run was started.
    return merged(settings, {"run": {"name": None, "resume": "none"}})


def check_complete(file: Path, saved: Mapping[str, Any]) -> None:
    """Checks that hparams.yaml has all settings of a run: missing ones would get the defaults.

    Args:
        file: hparams.yaml.
        saved: the settings in the run's checkpoint.

    Raises:
        ConfigError: settings are missing; names them.
    """
    settings = read_yaml(file)
    try:
        hparams = choose_names(update(Hparams(), settings, str(file)))
    except ConfigError as error:
        raise damaged(file, str(error)) from error
    there, known = flat(settings), {leaf.path for leaf in leaves(hparams)}
    lost = [
        path
        for path in flat(saved)
        if path in known and path not in there and unmet(hparams, path) is None
    ]
    if lost:
        raise damaged(file, f"{', '.join(lost[:3])} of the run's checkpoint not in it")


def damaged(file: Path, reason: str) -> ConfigError:
    """Returns the error for a damaged hparams.yaml, with how to restore it."""
    saved = _last(file.parent)
    remedy = (
        f"Remove it, and the settings are read from {saved}."
        if saved.exists()
        else "The run has no checkpoint to read them from: put the settings back, or start anew "
        "under another name."
    )
    return ConfigError(f"{file} is damaged ({reason}). {remedy}")


def newest_unfinished(runs_dir: str) -> Path:
    """Returns the unfinished run with the newest last.ckpt.

    For a run that was killed before its first checkpoint, its hparams.yaml counts instead.

    Raises:
        ConfigError: all runs have finished, or there are none.
    """
    found: list[tuple[float, Path]] = []
    for run in Path(runs_dir).glob("*"):
        # If hparams.yaml is missing, the checkpoint has the settings.
        places = (_last(run), run / "hparams.yaml")
        newest = next((file for file in places if file.is_file()), None)
        if newest is None:
            continue
        status, settings = read_json(run / "summary.json").get("status"), places[1]
        if status is None or (status != "finished" and newest != settings):
            found.append((newest.stat().st_mtime, run))
    if found:
        return max(found)[1]
    raise ConfigError(
        f"--run.resume auto: no unfinished run in {runs_dir}/. "
        "Use --run.resume none to start a new run."
    )
