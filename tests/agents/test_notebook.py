"""What a notebook reads of a run: its curves, its best weights, what they say of any image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from agents import load_run, results, segment
from agents.notebook import Results
from utils.run_folder import RunFolder


def test_curves_come_in_the_order_of_their_steps():
    metrics = {7: {"a": 1.0}, 2: {"a": 3.0, "b": 5.0}, 4: {"b": 6.0}}
    found = Results(RunFolder(Path("run")), {}, {}, metrics)
    assert found.curve("a") == ([2, 7], [3.0, 1.0])
    assert found.curve("b") == ([2, 4], [5.0, 6.0])


def test_weights_are_those_that_validated_best_and_any_image_is_labelled(train, tmp_path):
    code, folder = train(task="segmentation", trainer__max_epochs=1)
    assert code == 0
    run = RunFolder(folder)
    checkpoint = torch.load(run.best, weights_only=True)
    for key, value in checkpoint["state_dict"].items():
        if value.is_floating_point():
            checkpoint["state_dict"][key] = value + 1
    run.best.unlink()  # which may be a name of the last as well
    torch.save(checkpoint, run.best)
    agent = load_run(folder)
    assert not agent.training
    for key, value in agent.state_dict().items():
        assert torch.equal(value.cpu(), checkpoint["state_dict"][key]), key
    pixels = np.random.default_rng(0).integers(0, 255, (34, 50, 4), np.uint8)
    for mode in ("RGB", "RGBA", "L", "P"):
        image = Image.fromarray(pixels).convert(mode)
        labels = segment(agent, image)
        assert labels.shape == (34, 50)
        image.save(tmp_path / "image.png")
        np.testing.assert_array_equal(labels, segment(agent, str(tmp_path / "image.png")))


def test_images_of_16_bits_and_runs_by_their_paths(train):
    _, folder = train("run", task="segmentation", trainer__max_steps=1)
    agent = load_run(folder.name, folder.parent)
    assert results(folder.name, folder.parent).summary["status"] == "finished"
    grey = np.random.default_rng(0).integers(0, 255, (34, 50), np.uint8)
    labels = segment(agent, Image.fromarray(grey))
    # Pillow would make all of it white.
    deep = Image.fromarray(257 * grey.astype(np.uint16))
    np.testing.assert_array_equal(segment(agent, deep), labels)
    white = segment(agent, Image.fromarray(np.full_like(grey, 255)))
    assert (labels != white).any()
    with pytest.raises(ValueError, match=r"got ndarray\. .*PIL\.Image\.fromarray\(array\)"):
        segment(agent, grey)
