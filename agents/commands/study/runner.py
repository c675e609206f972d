"""Runs the missing runs of a study, each after those it needs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from typing import IO

import yaml

from agents.commands.study.board import Board
from agents.commands.study.output import write_output, write_table
from agents.commands.study.room import announce_room
from agents.commands.study.runs import Run, Study
from agents.commands.study.table import last_reason
from config.errors import ConfigError
from config.yaml_files import read_yaml
from utils.console import console, quiet_libraries
from utils.files import write_atomically
from utils.locks import claimed
from utils.run_folder import RunFolder
from utils.signals import TERMINATING, listening
from utils.text import command_line

_LOOK_SECONDS = 1.0  # between looks at the current run
_WAIT_SECONDS = 5.0  # between looks at runs of other processes


def run_study(study: Study) -> int:
    """Runs the missing runs of a study and writes its table, figures and page.

    Returns:
        0; 1 when a run failed; 130 when interrupted.

    Raises:
        ConfigError: the study's folder holds runs with other settings.
    """
    quiet_libraries()
    check_settings(study)
    announce_room(study)
    runner = _Runner(study)
    code = runner.run()
    for line in write_output(study):
        print(line)
    return code


def check_settings(study: Study) -> None:
    """Records the settings of all runs, and checks them against those recorded at their start.

    Raises:
        ConfigError: a run was started with other settings, or its record is lost.
    """
    file = study.folder / "settings.yaml"
    noted = read_yaml(file) if file.exists() else {}
    for run in study.runs:
        # Without the file, the runs were started by hand from the printed commands.
        if not file.exists() or not study.folder_of(run.name).path.exists():
            continue
        before, now = noted.get(run.name), run.identity
        if not isinstance(before, dict):
            raise ConfigError(
                f"{file} lacks the settings of {run.name}, which was started. Move that run "
                "away; or move that file away, to accept all runs as those of this study."
            )
        for path in [*before, *(path for path in now if path not in before)]:
            if before.get(path) != now.get(path):
                raise ConfigError(
                    f"{study.folder} holds a study with other settings: {run.name} was started "
                    f"with {path} {before.get(path)}, now it is {now.get(path)}. Give another "
                    "--run.dir, or move that folder away."
                )
    study.folder.mkdir(parents=True, exist_ok=True)
    noted |= {run.name: run.identity for run in study.runs}
    write_atomically(file, yaml.safe_dump(noted, sort_keys=False))


class _Runner:
    """Starts the runs one by one, until none is left that can be started."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.board = Board(study)
        self.failed: dict[str, str] = {}  # reasons, by run
        self.process: subprocess.Popen[bytes] | None = None
        self.began = time.time()

    def run(self) -> int:
        waiting = [run for run in self.study.runs if not self._finished(run)]
        code = 0
        with self.board, listening(signal.default_int_handler, TERMINATING):  # as Ctrl-C
            try:
                while waiting:
                    started = [run for run in waiting if self._try(run)]
                    waiting = [run for run in waiting if run not in started]
                    if waiting and not started:
                        self.board.show(elsewhere=self._elsewhere(waiting))
                        time.sleep(_WAIT_SECONDS)
            except KeyboardInterrupt:
                self._stop()
                self.board.interrupted()
                console.info("Interrupted; the same command goes on from here.")
                code = 130
        for name, reason in self.failed.items():
            console.warning("FAILED: %s: %s", name, reason)
        return code or int(bool(self.failed))

    def _try(self, run: Run) -> bool:
        """Runs a run if possible; returns whether it is dealt with."""
        lost = [name for name in run.needs if name in self.failed]
        if lost:
            self._fail(run, f"not started, needs {lost[0]}")
            return True
        if any(not self.study.folder_of(name).finished for name in run.needs):
            return False
        # If two processes work at one study, only one starts each run.
        claim = self.study.folder / "claims" / f"{run.name}.lock"
        claim.parent.mkdir(exist_ok=True)
        with claimed(claim) as mine:
            if self._finished(run):
                self.board.tell(f"{run.name}: finished elsewhere")
                return True
            if not mine or self.study.folder_of(run.name).busy:
                return False
            if reason := self._failed_meanwhile(run):
                self._fail(run, f"elsewhere: {reason}")
                return True
            self._execute(run)
        return True

    def _execute(self, run: Run) -> None:
        folder = self.study.folder_of(run.name)
        if folder.path.exists() and not folder.has_checkpoint:
            self._set_aside(folder)
        log = self.study.folder / "logs" / f"{run.name}.log"
        log.parent.mkdir(exist_ok=True)
        command = self.study.command(run)
        self.board.started(run, "resumed" if "--run.resume" in command else "started")
        with log.open("a", encoding="utf-8", errors="backslashreplace") as stream:
            print(f"$ {command_line(*command)}", file=stream, flush=True)
            group = f"{self.study.name}/{run.row}"
            self.process = start(command, stream, group, self.study.name)
            while self.process.poll() is None:
                self.board.show()
                time.sleep(_LOOK_SECONDS)
        code, self.process = self.process.poll(), None
        if code == 130:
            self.board.ended(run, "interrupted")
            raise KeyboardInterrupt
        if code == 0 and self._finished(run):
            self.board.ended(run, "finished")
            write_table(self.study)
        else:
            self._fail(run, last_reason(folder, log))

    def _set_aside(self, folder: RunFolder) -> None:
        # It was killed before its first checkpoint: there is nothing to resume from.
        aside = self.study.folder / "abandoned" / f"{folder.name}-{time.time_ns()}"
        aside.parent.mkdir(exist_ok=True)
        shutil.move(folder.path, aside)
        self.board.tell(f"{folder.name}: had no checkpoint yet, starts anew (old one: {aside})")

    def _fail(self, run: Run, reason: str) -> None:
        self.failed[run.name] = reason
        self.board.ended(run, "failed")
        self.board.tell(f"{run.name}: FAILED: {reason}")

    def _finished(self, run: Run) -> bool:
        return self.study.folder_of(run.name).finished

    def _failed_meanwhile(self, run: Run) -> str | None:
        # Runs that failed before this command began are tried once more.
        file = self.study.folder_of(run.name).summary
        if not file.exists() or file.stat().st_mtime < self.began:
            return None
        summary = self.study.folder_of(run.name).read_summary()
        return str(summary.get("reason")) if summary.get("status") == "failed" else None

    def _elsewhere(self, waiting: list[Run]) -> list[str]:
        return [run.name for run in waiting if self.study.folder_of(run.name).busy]

    def _stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            if os.name == "posix":  # on Windows Ctrl-C reaches the run, too
                self.process.send_signal(signal.SIGINT)
            self.process.wait()


def start(command: list[str], stream: IO[str], group: str, *tags: str) -> subprocess.Popen[bytes]:
    """Starts a run as a process.

    Args:
        command: of the run.
        stream: for what it prints.
        group: for wandb, which shows the seeds of a row as one line with a spread.
        tags: to find the run by on wandb.
    """
    given = os.environ.get("WANDB_TAGS")
    told = {"WANDB_RUN_GROUP": group, "WANDB_TAGS": ",".join([*tags, *([given] if given else [])])}
    told["PYTHONIOENCODING"] = "utf-8"  # as the log's own lines; Windows writes files otherwise
    environment = os.environ | told
    # In a process group of its own: the study receives Ctrl-C and passes it on once.
    return subprocess.Popen(
        command, stdout=stream, stderr=subprocess.STDOUT, env=environment, process_group=0
    )
