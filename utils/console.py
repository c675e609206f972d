"""Messages on the console during a run."""

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
    """Keeps printing from failing after the terminal is closed (log out of a run with `&`).

    Everything printed after that is lost.
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
    """Shows our messages plainly and silences notices of libraries that a user cannot act on."""
    if not console.handlers:
        console.addHandler(_ToStderr())
        console.setLevel(logging.INFO)
        console.propagate = False
    # Otherwise a library that cannot write a line to its log prints a traceback: wandb's log has
    # the system's encoding, which may lack letters in class names.
    logging.raiseExceptions = False
    warnings.formatwarning = _plainly  # type: ignore[assignment]
    # Lightning's tips, hardware lines and notes on saving.
    parts = ("utilities.rank_zero", "accelerators.cuda", "trainer.connectors.checkpoint_connector")
    for part in parts:
        logging.getLogger(f"pytorch_lightning.{part}").addFilter(_no_tips)
    # That there is no triton, as on Windows: none of its kernels is counted.
    logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)
    # https://github.com/Lightning-AI/pytorch-lightning/issues/21296: on torch >= 2.10.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # On purpose: micro-batches stay on the host until they are needed.
    warnings.filterwarnings("ignore", message=".*overridden `transfer_batch_to_device`.*")
    # On purpose: a resumed run continues in its folder, and the tuner's probe needs no validation.
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*have no `val_dataloader`.*")
    # A run that stops before its first validation has no best checkpoint; the last one counts.
    warnings.filterwarnings("ignore", message=".*could not find the monitored key.*")
    # The loaders are sized for the machine by data.num_workers.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # On purpose: --trainer.accelerator cpu.
    warnings.filterwarnings("ignore", message="GPU available but not used.*")
    # Not needed: logged values are the same on all processes, or summed over them.
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
    # A resumed run may drop readouts; `agents/resuming.py` checks what it has to keep.
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
    # Transparency is ignored: pixels are read as their colour.
    warnings.filterwarnings("ignore", message="Palette images with Transparency")
    # 16-mixed skips steps whose gradients overflow, often the first ones.
    warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step")
    # Frozen backbones are in eval mode on purpose.
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")


class _ToStderr(logging.Handler):
    # Not a StreamHandler, which would keep the `sys.stderr` of its creation.
    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _plainly(message: Warning | str, *_: Any) -> str:
    # Without the place in the source, which does not help a user.
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
