"""What a run announces before it starts: the values of `auto`, its length, and warnings."""

from __future__ import annotations

from config.hparams import DINOHparams, Hparams
from config.length import batches_per_epoch, images_of_step, steps_of_run, steps_per_epoch
from config.rules import get_leaf, metadata, unmet
from config.settings_tree import leaves
from config.types import Cadence, StepCadence
from utils.text import count, format_value


def choices(given: Hparams, resolved: Hparams) -> str:
    """Returns one line with the value of every `auto` that this run reads; empty without any."""
    found = {}
    for leaf in leaves(given):
        value = get_leaf(resolved, leaf.path)
        # Without cadences, which follow from the length.
        cadence = any(
            isinstance(extra, Cadence | StepCadence) for extra in metadata(leaf.annotation)
        )
        open_before = leaf.value in ("auto", []) and value not in ("auto", [])
        open_before |= leaf.value is None and isinstance(value, bool)
        if open_before and not cadence and unmet(resolved, leaf.path) is None:
            found[leaf.path] = value
    words = ", ".join(f"{path} {format_value(value)}" for path, value in found.items())
    return f"auto: {words}" if words else ""


# With fewer steps, a run is a try-out, not a training.
_FEW_STEPS, _FEW_STEPS_AN_EPOCH = 50, 4


def length(hparams: Hparams, images: int) -> tuple[str, list[str]]:
    """Says how long the run will be.

    Args:
        hparams: resolved for the data.
        images: number of training images.

    Returns:
        The length in one line, and warnings: too few steps, or settings that come into effect only
        after the run's end.
    """
    trainer, batch = hparams.trainer, int(hparams.data.batch_size)
    what = f"{hparams.task} with {hparams.backbone.name} on {hparams.data.name}"
    if unmet(hparams, "trainer.max_steps"):
        return f"{what}: {images:,} training images; nothing is trained.", []
    per_epoch = steps_per_epoch(hparams, images)
    steps = steps_of_run(hparams, images)
    epochs = steps / per_epoch if trainer.max_steps else int(trainer.max_epochs)
    line = (
        f"{what}: {images:,} training images, batches of {images_of_step(hparams)}; "
        f"{count(epochs, 'epoch')} of {count(per_epoch, 'step')}, {steps:,} in all."
    )
    limit, finer = trainer.limit_train_batches, "more images, or a smaller --data.batch_size"
    if limit is not None and limit < images // batch:
        finer = "a higher --trainer.limit_train_batches"
    warnings = []
    if steps < _FEW_STEPS:
        more = "--trainer.max_steps" if trainer.max_steps else f"--trainer.max_epochs, {finer}"
        warnings.append(
            f"Only {count(steps, 'optimizer step')}: too few to train anything. More: {more}."
        )
    elif per_epoch < _FEW_STEPS_AN_EPOCH:
        warnings.append(
            f"An epoch has only {count(per_epoch, 'step')}: rates jump, and pictures and "
            f"validations come every few steps. More: {finer}."
        )
    batches = batches_per_epoch(hparams, images)
    if trainer.accumulate > batches:
        warnings.append(
            f"--trainer.accumulate {trainer.accumulate}: a step ends with its epoch, which has "
            f"only {batches} x {batch} images. Lower it, or --data.batch_size."
        )
    warnings += _of_validations(hparams, epochs)
    warnings += _of_waiting(hparams, epochs)
    warnings += _of_warmups(hparams, epochs)
    if unmet(hparams, "dino.out_dim") is None:
        warnings += _of_dino(hparams.dino, steps)
    return line, warnings


def _of_validations(hparams: Hparams, epochs: float) -> list[str]:
    """Warns of too few validations to choose a checkpoint, or to stop early."""
    if unmet(hparams, "trainer.val_every_n_epochs"):
        return []
    every = int(hparams.trainer.val_every_n_epochs)
    if epochs < every:
        return [
            f"The run ends before its first validation, which comes after "
            f"{count(every, 'epoch')} (--trainer.val_every_n_epochs): it has none, and the "
            "last step counts."
        ]
    path = "callbacks.early_stopping.patience"
    # The first validation has none to compare with; after the last one the run ends anyway.
    patience, validations = hparams.callbacks.early_stopping.patience, int(epochs // every)
    if unmet(hparams, path) is None and patience >= validations - 1:
        return [
            f"--{path} {patience}: the run has {count(validations, 'validation')} and cannot stop "
            "early. Give a lower one, or train longer."
        ]
    return []


def _of_waiting(hparams: Hparams, epochs: float) -> list[str]:
    """Warns of a backbone that waits to the end, or without a reason."""
    waits = 0 if unmet(hparams, "backbone.freeze_epochs") else hparams.backbone.freeze_epochs
    if waits >= epochs:
        return [
            f"--backbone.freeze_epochs {waits}: the backbone waits until the end and is not "
            "trained. Wait for fewer, or train longer."
        ]
    if waits and hparams.backbone.weights == "none":
        return [
            f"--backbone.freeze_epochs {waits}: the backbone waits with random values, which teach "
            "the projector nothing. Leave it out, or give --backbone.weights."
        ]
    return []


def _of_warmups(hparams: Hparams, epochs: float) -> list[str]:
    """Warns of warm-ups that leave nothing of the run after them."""
    paths = ("optim.warmup_epochs", "segmentation.attention_loss_warmup_epochs")
    lengths = {path: get_leaf(hparams, path) for path in paths if unmet(hparams, path) is None}
    return [
        f"--{path} {length:g}: the warm-up lasts until the run ends. Give fewer, or train longer."
        for path, length in lengths.items()
        if length >= epochs
    ]


def _of_dino(dino: DINOHparams, steps: int) -> list[str]:
    """Warns of settings with which DINO's teacher or prototypes do not train."""
    warnings = []
    if dino.ema and dino.momentum_teacher == 1:
        warnings.append(
            "--dino.momentum_teacher 1: the teacher stays as it began"
            + (", and it is what is kept." if dino.export == "teacher" else ".")
        )
    if dino.sharpening and float(dino.teacher_temp) >= dino.student_temp:
        warnings.append(
            f"--dino.teacher_temp {dino.teacher_temp:g} is no lower than --dino.student_temp "
            f"{dino.student_temp:g}: the teacher does not sharpen, and outputs tend to be uniform."
        )
    if dino.sharpening and int(dino.warmup_teacher_temp_steps) > steps:
        warnings.append(
            f"--dino.warmup_teacher_temp_steps {dino.warmup_teacher_temp_steps}: the run ends "
            "before the teacher has its temperature."
        )
    if int(dino.freeze_last_layer_steps) >= steps:
        warnings.append(
            f"--dino.freeze_last_layer_steps {dino.freeze_last_layer_steps}: the prototypes wait "
            "until the end and are not trained."
        )
    return warnings
