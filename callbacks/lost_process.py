"""Ends a run of several processes with a message when one of them is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from threading import Thread
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from utils.run_folder import RunFolder


class LostProcess(Callback):
    """Watches the processes that this one has started.

    Without it, the others would wait for a killed process (half an hour with NCCL), or Lightning
    would kill them without a message. A process that ends by itself has already said why.

    Args:
        folder: of the run, whose summary will say what happened.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._watched = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts one thread per process, which sleeps until that ends."""
        if self._watched:
            return
        self._watched = True
        started: list[Any] = getattr(trainer.strategy.launcher, "procs", [])
        processes = [each for each in started if isinstance(each, subprocess.Popen)]
        for rank, process in enumerate(processes, start=1):
            Thread(target=self._watch, args=(rank, process, processes), daemon=True).start()

    def _watch(
        self, rank: int, process: subprocess.Popen[Any], processes: list[subprocess.Popen[Any]]
    ) -> None:
        code = process.wait()
        if code >= 0:
            return
        reason = (
            f"Process {rank} of {len(processes) + 1} (counted from 0) was killed by signal "
            f"{-code}, most often because memory ran out; the others cannot go on without it."
        )
        self.folder.write_summary(
            self.folder.read_summary() | {"status": "failed", "reason": reason}
        )
        print(f"error: {reason}", file=sys.stderr, flush=True)
        for each in processes:
            each.kill()
        os._exit(1)  # the main thread may wait for the lost one
