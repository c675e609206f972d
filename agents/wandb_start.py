"""Starts and ends runs of wandb.

Online if the service answers, else offline, with one sentence; nothing waits long for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_type_hints

from config.errors import shown
from config.hparams import LoggerHparams
from utils.console import console
from utils.files import name_damaged
from utils.network import answers, ends_within
from utils.run_folder import RunFolder

INIT_TIMEOUT = 8  # seconds in which the service has to take the run; wandb adds up to three
FINISH_TIMEOUT = 60  # seconds to wait for the last upload
LOST_TIMEOUT = 5  # the same if the service does not answer any more
_LONGEST_NAME, _LONGEST_TAG = 128, 64  # characters that wandb takes
_PROJECT = "twinsight"  # where neither the settings nor WANDB_PROJECT name one


def start(
    settings: LoggerHparams,
    folder: RunFolder,
    job_type: str,
    tags: Sequence[str] = (),
    group: str | None = None,
) -> Any | None:
    """Starts a run of wandb, or goes on with the one a folder had; None where it is disabled.

    Args:
        settings: whether and where to log.
        folder: of the run, which is named after it.
        job_type: what kind of run it is.
        tags: to find it by, besides those of WANDB_TAGS.
        group: of wandb's runs that it belongs to; None: that of WANDB_RUN_GROUP.

    Raises:
        ValueError: online is asked for and not possible; wandb rejects the project's name, or an
            environment variable.
    """
    mode = os.environ.get("WANDB_MODE") or settings.mode
    if mode not in (known := get_args(get_type_hints(LoggerHparams)["mode"])):
        raise ValueError(f"WANDB_MODE is {shown(mode)}: it has to be one of {', '.join(known)}.")
    if mode == "disabled":
        return None
    # wandb takes our folder `agents` for a library of that name and recommends another product.
    os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
    # It sends error reports even offline, and waits ten seconds for them at exit.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    # The variable would overrule the fallback to offline.
    with _without("WANDB_MODE"):
        import wandb

        _set_up(wandb)
        try:
            wandb.Settings(project=settings.project)
        except wandb.errors.UsageError as error:
            raise ValueError(f"--logger.project: {_one_line(error)}") from error
        if mode == "auto" and (mode := _settled(wandb)) == "disabled":
            return None
        common = _described(wandb, settings, folder, job_type, tags, group)
        return _init(wandb, mode, settings.mode == "online", common)


def _set_up(wandb: Any) -> None:
    """Lets wandb read its environment variables, such as `WANDB_BASE_URL`.

    Raises:
        ValueError: wandb rejects one; its value, which may be a secret, is left out.
    """
    from pydantic import ValidationError  # which wandb is built on

    try:
        # Silent: we speak ourselves, and to greet a user it would wait for the service.
        wandb.setup(wandb.Settings(silent=True))
    except ValidationError as error:
        told = [
            f"WANDB_{'_'.join(map(str, each['loc'])).upper()}: {each['msg']}"
            for each in error.errors(include_input=False, include_context=False)
        ]
        raise ValueError("; ".join(told)) from None
    except wandb.errors.Error as error:
        raise ValueError(f"wandb rejects an environment variable: {_one_line(error)}") from None


def _settled(wandb: Any) -> str:
    """Returns the mode that its commands have written into a file, or `auto`."""
    filed: str = wandb.setup().settings.mode
    if filed not in ("offline", "disabled"):
        return "auto"
    console.info("wandb: %s, as `wandb %s` settled here; `wandb online` ends that.", filed, filed)
    return filed


@contextmanager
def _without(name: str) -> Iterator[None]:
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value


def _init(wandb: Any, mode: str, insists: bool, common: Mapping[str, Any]) -> Any:
    """Starts a run online, or offline if that fails and the user does not insist; see `start`."""
    if mode != "offline":
        reason = _why_offline(wandb)
        if reason is None:
            try:
                return wandb.init(mode="online", **common)
            except wandb.errors.Error as error:
                reason = f"not reachable ({_one_line(error)})"
        if insists:
            raise ValueError(f"--logger.mode online: wandb: {reason}. Use auto or offline.")
        console.info("wandb: %s; logging offline.", reason)
    return wandb.init(mode="offline", **common)


def _described(
    wandb: Any,
    settings: LoggerHparams,
    folder: RunFolder,
    job_type: str,
    tags: Sequence[str],
    group: str | None,
) -> dict[str, Any]:
    """Returns the arguments of `wandb.init` that do not depend on the mode; see `start`."""
    given = os.environ.get("WANDB_TAGS", "").split(",")
    return {
        "project": settings.project or os.environ.get("WANDB_PROJECT") or _PROJECT,
        "entity": settings.entity,
        "name": shortened(folder.name, _LONGEST_NAME),
        "group": shortened(group, _LONGEST_NAME) if group else None,
        "job_type": job_type,
        "tags": [shortened(tag, _LONGEST_TAG) for tag in (*tags, *given) if tag],
        "dir": str(folder.path),
        "id": _known_id(folder),
        "resume": "allow",
        "settings": wandb.Settings(
            init_timeout=INIT_TIMEOUT,
            silent=True,
            console="wrap",
            # The address of a repository may hold a token; environment.json names the commit.
            disable_git=True,
        ),
    }


def _known_id(folder: RunFolder) -> str | None:
    known = folder.read_environment().get("wandb_id")
    if known is None or (isinstance(known, str) and re.fullmatch(r"[\w-]{1,64}", known, re.ASCII)):
        return known
    name_damaged(folder.environment, f"wandb_id {shown(known)} is no id of wandb's")
    return None


def log_table(
    settings: LoggerHparams,
    folder: RunFolder,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    pictures: Mapping[str, Path],
    about: str,
) -> None:
    """Logs a study's table with pictures as a wandb run of its own, tagged as its runs are.

    Args:
        settings: whether and where to log.
        folder: of the study, which the run is named after.
        columns: of the table.
        rows: of the table.
        pictures: files by title.
        about: what to know when reading it.
    """
    run = start(settings, folder, "study", [folder.name], group=folder.name)
    if run is None:
        return
    import wandb

    table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
    images = {title: wandb.Image(str(file), caption=title) for title, file in pictures.items()}
    run.log({"table": table, **images})
    finished(run, {"about": about})


def finished(run: Any, facts: Mapping[str, Any]) -> bool:
    """Closes a run, without waiting long for a lost network or service.

    Args:
        run: of wandb.
        facts: for its summary, beside what was logged.

    Returns:
        Whether it was closed, and uploaded if it is online.
    """

    def close() -> None:
        run.summary.update(facts)
        run.finish()

    lost = run.settings.mode == "online" and not answers(run.settings.base_url)
    return ends_within(LOST_TIMEOUT if lost else FINISH_TIMEOUT, close)


def shortened(text: str, longest: int) -> str:
    """Returns a text of at most `longest` characters."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _why_offline(wandb: Any) -> str | None:
    """Returns why not to go online, or None; the network is used only if there is an API key."""
    try:
        if not wandb.login(prompt=False, verify=False):
            return "no API key"
    except wandb.errors.Error as error:
        return f"the API key is not accepted ({_one_line(error)})"
    address = wandb.setup().settings.base_url
    return None if answers(address) else f"{address} does not answer"


def _one_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
