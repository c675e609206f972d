"""Judges a run's best checkpoint again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.model_helpers import is_overridden

from agents.backbone import choose_attention
from agents.build import build_callbacks, build_data
from agents.commands.trained import trained_agent
from agents.lightning import stop_loading
from agents.protocols import judged_by
from agents.steering import validates
from callbacks.guard import Guard
from config.base_settings import OF_THE_MACHINE
from config.hparams import Hparams
from config.lookup import read_settings
from config.rules import as_typed
from config.validation import given_anew
from utils.checkpoint_io import best_or_last
from utils.console import console
from utils.device import precision_here, resolve_precision, usable_device, use_tensor_cores
from utils.run_folder import RunFolder

# Settings that numbers do not follow from, and those of a test that name what they do themselves.
_SAME_NUMBERS = {
    *(*OF_THE_MACHINE, "run.dir", "trainer.chunk_size", "callbacks.attention_quality.enabled"),
    *("segmentation.protocol", "segmentation.test_window", "segmentation.test_stride"),
    *("segmentation.test_scales", "segmentation.test_flip"),
}


def evaluate(folder: RunFolder, hparams: Hparams) -> int:
    """Judges the best checkpoint of a run and adds `evaluate/…` to its summary.

    On the test set, by the protocol of the settings, where the task has a test; else on the
    validation set. In the precision of the run where this machine has it, so that its own protocol
    gives its own numbers. What was measured under other settings than the run's, such as on other
    images or in another precision, is named by those: `evaluate/data.root elsewhere/…`.

    Raises:
        ValueError: nothing to judge by, or masks that cannot be used; and see `trained_agent`.
        OSError: the summary cannot be written; what was found is printed before.
    """
    agent, hparams, source = trained_agent(folder, hparams, best_or_last(folder))
    data = build_data(hparams, source)
    tests = is_overridden("test_step", agent)
    data.prepare_data()
    data.setup("test" if tests else "validate")
    if not (tests or validates(hparams, data)):
        raise ValueError(
            f"--evaluate {folder.name}: a run of task {hparams.task} is judged on validation "
            "images, and there are none: see --data.val_fraction, --trainer.limit_val_batches."
        )
    data.check_masks(Path(hparams.run.dir) / ".cache")
    device = usable_device(hparams.trainer.accelerator)
    asked = hparams.trainer.precision
    precision: Any = resolve_precision(precision_here(asked, device), hparams.trainer.accelerator)
    if asked not in ("auto", precision):
        console.info("precision: this machine has no %s, so %s it is.", asked, precision)
    hparams.trainer.precision = precision  # by which the numbers are named where it is another
    use_tensor_cores(precision, device)
    choose_attention(agent, int(hparams.data.image_size), precision, device)
    trainer = pl.Trainer(
        accelerator=device.type,
        devices=1,
        precision=precision,
        limit_val_batches=hparams.trainer.limit_val_batches,
        limit_test_batches=hparams.trainer.limit_test_batches,
        logger=False,
        enable_checkpointing=False,
        default_root_dir=folder.path,
        callbacks=build_callbacks(hparams, Guard(device), evaluating=True),
    )
    if tests:
        (metrics,) = trainer.test(agent, datamodule=data, verbose=False)
        old, how = "test/", [*judged_by(agent.facts)]
    else:
        (metrics,) = trainer.validate(agent, datamodule=data, verbose=False)
        old, how = "val/", []
    stop_loading(trainer)
    if changed := _otherwise(folder, hparams):
        how.append(changed)
    new = "/".join(["evaluate", *how, ""])
    found = {name.replace(old, new, 1): value for name, value in metrics.items()}
    for name, value in found.items():  # first: the folder may be one that can only be read
        print(f"{name:48s} {value:.4f}")
    folder.write_summary(folder.read_summary() | found)
    return 0


def _otherwise(folder: RunFolder, hparams: Hparams) -> str:
    """Returns what is measured otherwise than the run was, setting by setting."""
    changed = [
        (leaf.path, leaf.value)
        for leaf, _ in given_anew(hparams, read_settings(folder.path))
        if leaf.path not in _SAME_NUMBERS
    ]
    return ", ".join(f"{path} {_last_part(value)}" for path, value in changed)


def _last_part(value: Any) -> str:
    # The name of a number has no place for the folders around that of the data.
    return value.rstrip("/").rpartition("/")[2] if isinstance(value, str) else as_typed(value)
