"""One file per method: a LightningModule that reads like its paper, and what runs it.

What a notebook needs of all that can be imported from here.
"""

from agents.notebook import Results, load_run, results, segment
from agents.own_parts import add_callback, add_part
from agents.trainer import Trainer
from config.hparams import Hparams

__all__ = [
    "Hparams",
    "Results",
    "Trainer",
    "add_callback",
    "add_part",
    "load_run",
    "results",
    "segment",
]
