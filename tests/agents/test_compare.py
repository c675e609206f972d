"""The curves of several runs are drawn as those of one."""

import pytest
import torch

from agents.commands.compare import compare, draw_curves
from utils import figures
from utils.run_folder import RunFolder

NAMES = ("_first", "$second$", "z" * 200)


@pytest.fixture
def runs(tmp_path):
    """Two runs with curves, and one that was measured once."""
    every = "step,train/loss,train/lr,val/accuracy,val/loss,val/miou\n"
    rows = (
        "0,2.0,0.1,,,\n9,1.0,0.2,0.50,1.5,0.250\n",
        "0,2.5,0.1,,,\n9,1.2,0.3,0.51,1.6,0.251\n",
        "0,,,,,0.4\n",
    )
    found = {}
    for number, (name, row) in enumerate(zip(NAMES, rows, strict=True)):
        folder = RunFolder(tmp_path / str(number))
        folder.path.mkdir()
        again = row.splitlines()[-1].replace("9,", "19,", 1) + "\n" if number < 2 else ""
        (folder.path / "metrics.csv").write_text(every + row + again)
        found[name] = folder
    return found


def test_panels_go_from_the_loss_to_diagnostics_in_sensible_ranges(runs):
    figure = draw_curves(runs)
    assert figure is not None
    shown = [axis for axis in figure.axes if axis.get_visible()]
    titles = [axis.get_title() for axis in shown]
    assert titles == ["val/loss", "train/loss", "val/miou", "val/accuracy", "train/lr"]
    for axis in shown[2:4]:  # shares: a difference of 0.001 is none
        low, high = axis.get_ylim()
        assert low <= 0
        assert high >= 1
    assert all(line.get_marker() == "o" for axis in shown for line in axis.get_lines())
    figures.close(figure)


def test_every_run_is_in_the_legend_in_its_order_and_as_text(runs):
    figure = draw_curves(runs)
    assert figure is not None
    figures.picture(figure)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [text.strip("\u200b") for text in texts[:2]] == ["_first", r"\$second\$"]
    assert texts[2] == figures.name("z" * 200)
    assert len(texts[2]) == 32
    colours = [line.get_color() for line in figure.legends[0].get_lines()]
    assert colours == [figures.HEADS[number] for number in range(3)]
    figures.close(figure)


def test_settings_are_read_from_the_checkpoint_where_hparams_yaml_is_gone(tmp_path):
    folders = [RunFolder(tmp_path / name) for name in ("one", "two")]
    for rate, folder in enumerate(folders, start=1):
        folder.checkpoints.mkdir(parents=True)
        settings = {"task": "dino", "optim": {"lr": rate}}
        saved = {"state_dict": {}, "global_step": 3, "hyper_parameters": settings}
        torch.save(saved, folder.last)
    assert "| optim.lr | 1 | 2 |" in compare(folders)
