"""What the user reads while a run works."""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, TextIO

console = logging.getLogger("twinsight")


def outlive_terminal(stream: TextIO) -> None:
    """Lets who prints go on when the terminal is closed, as by logging out of a run with `&`.

    What is printed from then on is lost.
    """

    def lasting(act: Callable[..., Any]) -> Callable[..., Any]:
        def attempt(*arguments: Any) -> Any:
            try:
                return act(*arguments)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
                return None

        return attempt

    for name in ("write", "flush"):
        setattr(stream, name, lasting(getattr(stream, name)))


def quiet_libraries() -> None:
    """Shows our messages plainly and silences notices a user can do nothing about."""
    if not console.handlers:
        console.addHandler(_ToStderr())
        console.setLevel(logging.INFO)
        console.propagate = False
    # What a library cannot write to its log would be a traceback a line: wandb's has the system's
    # encoding, names of classes may have other letters.
    logging.raiseExceptions = False
    warnings.formatwarning = _plainly  # type: ignore[assignment]
    # One-process runs: tips, hardware lines and notes on saving of Lightning.
    parts = ("utilities.rank_zero", "accelerators.cuda", "trainer.connectors.checkpoint_connector")
    for part in parts:
        logging.getLogger(f"pytorch_lightning.{part}").addFilter(_no_tips)
    # https://github.com/Lightning-AI/pytorch-lightning/issues/21296: on torch >= 2.10.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # On purpose: micro-batches stay on the host until they are needed.
    warnings.filterwarnings("ignore", message=".*overridden `transfer_batch_to_device`.*")
    # On purpose: a resumed run goes on in its folder, and the tuner's probe needs no validation.
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*have no `val_dataloader`.*")
    # A run that stops before its first validation has no best checkpoint; the last one counts.
    warnings.filterwarnings("ignore", message=".*could not find the monitored key.*")
    # The loaders are sized for the machine by data.num_workers.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # On purpose: --trainer.accelerator cpu.
    warnings.filterwarnings("ignore", message="GPU available but not used.*")
    # What is the same on all processes, or adds up over them, is logged as it should be.
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
    # A resumed run may look at less; what it has to keep is checked (`agents/resuming.py`).
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
    # What is transparent is read as its colour.
    warnings.filterwarnings("ignore", message="Palette images with Transparency")
    # In 16-mixed a step whose gradients overflow is left out, often the first ones.
    warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step")
    # Frozen backbones are in eval mode on purpose.
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")


class _ToStderr(logging.Handler):
    # Not a StreamHandler: that would keep the stream there was when it was made.
    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _plainly(message: Warning | str, *_: Any) -> str:
    # The place in the source tells a user nothing.
    return f"warning: {message}\n"


def _no_tips(record: logging.LogRecord) -> bool:
    noise = (
        "litlogger",
        "GPU available",
        "Tensor Cores",
        "TPU available",
        "HPU available",
        "Tip:",
        "💡",
        "Skipping setting a default",
        "to estimate number of stepping batches",
        "was configured so",
        "`weights_only` was not set",
        "`Trainer.fit` stopped",
        "Restoring states from",
        "Loaded model weights from",
    )
    return not any(word in record.getMessage() for word in noise)
