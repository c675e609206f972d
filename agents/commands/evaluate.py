"""Evaluates a run's best checkpoint again."""

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
from config.errors import as_typed
from config.hparams import Hparams
from config.lookup import read_settings
from config.saved_settings import given_anew
from utils.console import console
from utils.device import precision_here, resolve_precision, usable_device, use_tensor_cores
from utils.run_checkpoints import best_or_last
from utils.run_folder import RunFolder

# Settings that do not change the numbers, and those that `judged_by` already puts into the name.
_SAME_NUMBERS = {
    *(*OF_THE_MACHINE, "run.dir", "trainer.chunk_size", "callbacks.attention_quality.enabled"),
    *("segmentation.protocol", "segmentation.test_window", "segmentation.test_stride"),
    *("segmentation.test_scales", "segmentation.test_flip"),
}


def evaluate(folder: RunFolder, hparams: Hparams) -> int:
    """Evaluates the best checkpoint of a run and adds `evaluate/…` to its summary.

    It uses the test set, by the protocol of the settings, if the task has a test; otherwise the
    validation set. The precision is that of the run if this machine has it, so that the run's own
    settings give its own numbers. Settings that differ from the run's, such as other images or
    another precision, become a part of the name: `evaluate/data.root elsewhere/…`.

    Raises:
        ValueError: there is nothing to evaluate on, or masks cannot be used; see also
            `trained_agent`.
        OSError: the summary cannot be written; the numbers are printed before.
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
        console.info("precision: this machine has no %s and uses %s.", asked, precision)
    hparams.trainer.precision = precision  # becomes a part of the name if it differs
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
    measure = trainer.test if tests else trainer.validate
    try:
        (metrics,) = measure(agent, datamodule=data, verbose=False)
    finally:
        stop_loading(trainer)
    old, how = ("test/", [*judged_by(agent.facts)]) if tests else ("val/", [])
    if changed := _differences(folder, hparams):
        how.append(changed)
    new = "/".join(["evaluate", *how, ""])
    found = {name.replace(old, new, 1): value for name, value in metrics.items()}
    for name, value in found.items():  # before writing: the folder may be read-only
        print(f"{name:48s} {value:.4f}")
    folder.write_summary(folder.read_summary() | found)
    return 0


def _differences(folder: RunFolder, hparams: Hparams) -> str:
    """Returns the settings that differ from those of the run and change the numbers."""
    changed = [
        (leaf.path, leaf.value)
        for leaf, _ in given_anew(hparams, read_settings(folder.path))
        if leaf.path not in _SAME_NUMBERS
    ]
    return ", ".join(f"{path} {_last_part(value)}" for path, value in changed)


def _last_part(value: Any) -> str:
    # Of a path only the last part goes into the name of a number.
    return value.rstrip("/").rpartition("/")[2] if isinstance(value, str) else as_typed(value)
