"""`--fast`: one batch of everything, to see in seconds whether a run works. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from typing import Any

from config.errors import as_typed
from config.hparams import Hparams
from config.resolve import choose_names, processes_of
from config.rules import get_leaf, no_effect
from config.settings_tree import leaves, set_leaf

# These override the length of a run in files.
_ONE_BATCH: dict[str, Any] = {
    "trainer.max_steps": None,
    "trainer.max_epochs": 1,
    "trainer.limit_train_batches": 1,
    "trainer.val_every_n_epochs": 1,
    "trainer.limit_val_batches": 1,
    "trainer.limit_test_batches": 1,
    "data.feature_cache": "off",
}
# These replace only defaults. Readouts hold out a fifth of their images.
_SMALL: dict[str, Any] = {
    "callbacks.online_probe.num_images": 50,
    "callbacks.dense_knn.num_images": 50,
    "callbacks.embeddings.num_images": 50,
    "callbacks.attention_quality.num_images": 4,
    "callbacks.attention_quality.num_test_images": 4,
}


def shortened(hparams: Hparams, given: Collection[str]) -> tuple[Hparams, str]:
    """Shortens a run to a try-out.

    Args:
        hparams: from files and command line.
        given: dotted paths on the command line, which are kept.

    Returns:
        A copy, and a description of the changes.
    """
    hparams = deepcopy(hparams)
    batch = hparams.data.batch_size
    # Twice a batch, because half of the images may be held out.
    one_batch = {
        **_ONE_BATCH,
        "probe.num_images": max(200, 2 * batch if isinstance(batch, int) else 0),
    }
    defaults = {leaf.path: leaf.default for leaf in leaves(hparams)}
    # The processes share the batch.
    small = {"data.batch_size": 8 * processes_of(hparams), **_SMALL}
    if isinstance(hparams.trainer.chunk_size, int):  # it needs a batch of at least this size
        del small["data.batch_size"]
    chosen = [path for path in small if get_leaf(hparams, path) != defaults[path]]
    done = []
    for path, value in (one_batch | small).items():
        if path in given or path in chosen or no_effect(choose_names(hparams), path):
            continue
        if get_leaf(hparams, path) != value:
            set_leaf(hparams, path, value)
            done.append(f"{path} {as_typed(value)}")
    return hparams, f"--fast: {', '.join(done)}"
