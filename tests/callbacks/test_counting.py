"""What callbacks collect from batches: files that cannot be read, views, pixels of every image."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from callbacks.image_counts import ImageCounts
from callbacks.step_outputs import EvaluationOutputs, step_result
from callbacks.unreadable_images import UnreadableImages
from callbacks.views import Views
from datamodules.masked_images import SegmentationBatch
from utils.logging import RunFolderLogger
from utils.palette import VOID
from utils.run_folder import RunFolder


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_batch_end"])
@pytest.mark.parametrize("resumed", [False, True])
def test_more_than_a_hundredth_of_the_files_unreadable_ends_a_run(hook, resumed):
    data = SimpleNamespace(train_files=["x"] * 150, val_files=["x"] * 50)
    trainer = SimpleNamespace(datamodule=data)
    callback = UnreadableImages()

    def batch(*names: str) -> None:
        getattr(callback, hook)(trainer, None, None, SimpleNamespace(unreadable=names), 0)

    batch()
    batch("b (why)", "a (why)")
    batch("a (why)")  # counts once
    if resumed:
        state, callback = callback.state_dict(), UnreadableImages()
        callback.load_state_dict(state)
    with pytest.raises(ValueError, match=r"3 of 200 .* more than 1%: a \(why\); b \(why\); c"):
        batch("c (why)")


def test_views_are_those_of_the_first_batch_of_an_epoch(monkeypatch):
    drawn: list[tuple[Any, str]] = []
    monkeypatch.setattr("callbacks.views.draw", lambda kept, title, *_: drawn.append((kept, title)))
    monkeypatch.setattr("callbacks.views.log_figure", lambda *_: None)
    callback = Views(every_n_epochs=2, num_images=3)
    trainer: Any = SimpleNamespace(max_epochs=9, max_steps=-1, should_stop=False, global_step=0)
    trainer.validating = False
    for epoch in range(3):
        trainer.current_epoch = epoch
        for number in range(2):
            batch = SimpleNamespace(previews=lambda n, at=(epoch, number): {"view": (n, *at)})
            callback.on_train_batch_start(trainer, torch.nn.Identity(), batch, number)  # type: ignore[arg-type]
        callback.on_train_epoch_end(trainer, torch.nn.Identity())  # type: ignore[arg-type]
    title = "Augmented views of training images, epoch"
    assert drawn == [({"view": (3, e, 0)}, f"{title} {e + 1}") for e in (0, 2)]


@pytest.mark.parametrize("processes", [1, 2])
def test_pixels_of_every_image_are_counted_by_class_once_a_test(tmp_path, processes):
    labels = torch.tensor([[[0, 1]], [[VOID, 1]]], dtype=torch.uint8)
    predictions = [torch.tensor([[1, 1]]), torch.tensor([[0, 0]])]
    images, sizes = torch.zeros(2, 3, 1, 2, dtype=torch.uint8), torch.tensor([[1, 2, 1, 2]] * 2)
    batch = SegmentationBatch(images, labels, sizes, torch.tensor([3, 5]), ())
    shown = step_result(torch.zeros(()), EvaluationOutputs(predictions))
    agent: Any = SimpleNamespace(classes=("a", "b"), confusion={})
    logger = RunFolderLogger(RunFolder(tmp_path))
    trainer: Any = SimpleNamespace(loggers=[logger], world_size=processes)
    callback = ImageCounts()
    for _ in range(2):
        callback.on_test_start(trainer, agent)
        callback.on_test_batch_end(trainer, agent, shown, batch, 0)
        callback.on_test_end(trainer, agent)
    file = tmp_path / "test_counts.npz"
    assert file.exists() == (processes == 1)  # else none of them sees all images
    if processes == 1:
        with np.load(file) as arrays:
            # Image, truth, prediction, pixels.
            assert arrays["rows"].tolist() == [[3, 0, 1, 1], [3, 1, 1, 1], [5, 1, 0, 1]]
            assert arrays["num_classes"] == 2
