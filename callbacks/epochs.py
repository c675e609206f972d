"""The epochs of a run: how many there are, and in which ones a callback acts."""

from __future__ import annotations

import math

from pytorch_lightning import Trainer


def due(trainer: Trainer, every_n_epochs: int) -> bool:
    """Returns whether to draw in this epoch: the first, every nth after it, and the last.

    Validations may be rarer than epochs: then it is the first validation from such an epoch on.
    """
    return trainer.current_epoch % every_n_epochs < epochs_at_once(trainer) or last_epoch(trainer)


def epochs_at_once(trainer: Trainer) -> int:
    """Returns how many epochs count together: one, or in a validation those up to the next."""
    return (trainer.check_val_every_n_epoch or 1) if trainer.validating else 1


def last_epoch(trainer: Trainer) -> bool:
    """Returns whether training ends with this epoch, or before another validation."""
    coming = trainer.current_epoch + epochs_at_once(trainer)
    last = coming >= epochs_of(trainer) or trainer.should_stop
    return last or (trainer.max_steps > 0 and trainer.global_step >= trainer.max_steps)


def epochs_of(trainer: Trainer) -> int:
    """Returns the epochs of a run, rounded up if its length is in steps."""
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        return trainer.max_epochs
    return math.ceil(trainer.max_steps / steps_an_epoch(trainer))


def steps_an_epoch(trainer: Trainer) -> int:
    """Returns the optimizer steps of an epoch; the last may accumulate fewer batches."""
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
