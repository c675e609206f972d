"""One file per method: a LightningModule that reads like its paper, and what runs it.

What a notebook needs of all that can be imported from here.
"""

from agents.notebook import load_run, segment
from agents.trainer import Trainer
from config.hparams import Hparams

__all__ = ["Hparams", "Trainer", "load_run", "segment"]
