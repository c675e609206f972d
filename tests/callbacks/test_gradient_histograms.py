"""Sizes of gradients are counted as numpy counts them, and shown."""

import numpy as np
import pytest
import torch

from callbacks.gradient_histograms import EDGES, sizes
from main import main
from tests.conftest import assert_same, stopped_after, summary, weights
from tests.wandb_files import read_offline

ON = {"callbacks__gradient_histograms__enabled": "true"}


def test_sizes_are_counted_by_their_power_of_ten():
    torch.manual_seed(0)
    gradient = torch.randn(40, 30) * 10.0 ** torch.randint(-9, 1, (40, 30))
    gradient[0, 0] = 3e-9  # beside the edges, which float32 may miss by a rounding
    expected, _ = np.histogram(np.log10(gradient.abs().double().numpy()), EDGES)
    assert sizes(gradient).tolist() == expected.tolist()


def test_zeros_and_what_is_not_finite_lie_at_the_ends():
    gradient = torch.tensor([[0.0, 1e-30, torch.inf, torch.nan, -1e30, 1.5]])
    counts = sizes(gradient)
    assert (counts[0], counts[-1], counts.sum()) == (2, 3, 6)


@pytest.mark.parametrize("task", ["barlow_twins", "dino", "segmentation"])
def test_a_run_draws_the_matrices_of_its_parts(train, task):
    options = {"task": task, "trainer__max_epochs": 2}
    code, folder = train("seen", **options, **ON)
    assert code == 0
    assert summary(folder)["readout_failures"] == {}
    drawn = sorted((folder / "figures" / "gradient_histograms").glob("*.png"))
    assert len(drawn) == 2
    arrays = np.load(drawn[0].with_name("newest.npz"))
    # A segmentation keeps its weights without the name of what holds them.
    named = {name.removeprefix("network."): arrays[name] for name in arrays.files}
    matrices = {name for name, value in weights(folder).items() if value.ndim > 1}
    assert set(named) <= matrices
    assert any(name.startswith(("backbone.", "student.backbone.")) for name in named)
    assert all(named[name].sum() == weights(folder)[name].numel() for name in named)
    _, plain = train("plain", **options)
    assert_same(weights(folder), weights(plain))


def test_a_run_that_goes_on_within_an_epoch_has_all_its_pictures(train):
    every = {"callbacks__segmentation_predictions__enabled": "true"}
    every |= {"callbacks__segmentation_predictions__every_n_epochs": 1}
    options = {"task": "segmentation", "trainer__max_epochs": 2}
    _, whole = train("whole", **options, **ON, **every)
    with stopped_after(3):
        code, parts = train("parts", **options, **ON, **every)
    assert (code, summary(parts)["steps"]) == (130, 3)
    assert main(["--run.resume", parts.name, "--run.dir", str(parts.parent)]) == 0
    one, other = (folder / "figures" for folder in (whole, parts))
    drawn = [{file.relative_to(each) for file in each.rglob("*.png")} for each in (one, other)]
    assert drawn[0] == drawn[1] != set()
    first, second = (np.load(each / "gradient_histograms" / "newest.npz") for each in (one, other))
    assert all((first[name] == second[name]).all() for name in first.files)


def test_wandb_shows_them_as_histograms(train):
    code, folder = train("run", logger__mode="offline", trainer__max_epochs=1, **ON)
    assert code == 0
    (offline,) = read_offline(folder)
    shown = offline.media("histogram")
    assert len(shown) == 1
    names = {key for key in shown[0] if key.startswith("gradients/")}
    with np.load(folder / "figures" / "gradient_histograms" / "newest.npz") as arrays:
        assert names == {f"gradients/{name}" for name in arrays.files}
        name = next(iter(arrays.files))
        assert shown[0][f"gradients/{name}"]["values"] == arrays[name].tolist()
