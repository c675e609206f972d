"""The curves of several runs are drawn as those of one."""

from pathlib import Path

import pytest
import torch

from agents.commands.compare import compare, draw_curves, labels, write_comparison
from main import main
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


def test_of_a_kind_comes_first_what_most_runs_have(tmp_path):
    found = {}
    for name, columns in (("one", ("a", "z")), ("two", ("m", "z")), ("three", ("m", "z"))):
        folder = found[name] = RunFolder(tmp_path / name)
        folder.path.mkdir()
        header = ",".join(f"train/{column}" for column in columns)
        (folder.path / "metrics.csv").write_text(f"step,{header}\n0,1,2\n1,2,3\n")
    figure = draw_curves(found)
    assert figure is not None
    assert [axis.get_title() for axis in figure.axes] == ["train/z", "train/m", "train/a"]
    figures.close(figure)


def test_the_table_has_what_differs_and_all_results(tmp_path):
    folders = [RunFolder(tmp_path / name) for name in ("a", "b", "c|d")]
    for number, folder in enumerate(folders):
        folder.path.mkdir()
        lrs, same = (0.1, 0.2, 0.2), "  weight_decay: 0.5"
        folder.hparams.write_text(f"task: dino\noptim:\n  lr: {lrs[number]}\n{same}\n")
        result = {"status": "finished", "test/miou": 0.25, "alarms": ["x"]}
        folder.write_summary(result if number else {"transductive": True})
    lines = compare(folders).splitlines()
    assert lines[:2] == [r"|  | a* | b | c\|d |", "| --- | --- | --- | --- |"]
    assert lines[2:6] == [
        "| optim.lr | 0.1 | 0.2 | 0.2 |",
        "| **transductive** | True | – | – |",
        "| **status** | – | finished | finished |",
        "| **test/miou** | – | 0.25 | 0.25 |",
    ]
    assert "transductive" in lines[-1]


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


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (("runs/a", "runs/b"), ["a", "b"]),
        (("mine/dino", "yours/dino", "mine/a"), ["mine/dino", "yours/dino", "a"]),
        (("x/runs/dino", "y/runs/dino"), ["x/runs/dino", "y/runs/dino"]),
        (("dino", "runs/dino", "runs/../more/dino"), ["here/dino", "runs/dino", "more/dino"]),
        (("runs/dino", "runs/dino"), ["dino", "dino"]),
    ],
)
def test_runs_are_called_by_the_end_of_their_path_that_tells_them_apart(
    tmp_path, monkeypatch, paths, expected
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert labels([RunFolder(Path(path)) for path in paths]) == expected


def test_runs_of_one_name_have_a_column_and_a_curve_each(tmp_path, capsys):
    places = [tmp_path / parent / "dino" for parent in ("mine", "yours")]
    for rate, place in enumerate(places, start=1):
        place.mkdir(parents=True)
        (place / "hparams.yaml").write_text(f"task: dino\noptim:\n  lr: {rate}\n")
        rows = "".join(f"{step},{rate * step}\n" for step in range(3))
        (place / "metrics.csv").write_text(f"step,train/loss\n{rows}")
    assert main(["--compare", *map(str, places), "--run.dir", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    assert "|  | mine/dino | yours/dino |" in said
    assert "| optim.lr | 1 | 2 |" in said
    (place,) = tmp_path.glob("runs/comparisons/mine-dino-vs-yours-dino-*")
    assert {file.name for file in place.iterdir()} == {"table.md", "curves.png"}


def test_every_set_of_runs_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    long = "a" * 120
    sets = [
        ("runs/b", "runs/a"),
        (f"runs/{long}-1", f"runs/{long}-2"),
        (f"runs/{long}-1", f"runs/{long}-3"),
        (f"runs/{'木' * 60}", f"runs/{'林' * 60}"),
        ("mine/a", "runs/b"),
        ("runs/a-vs-b", "runs/c"),
        ("runs/a", "runs/b-vs-c"),
    ]
    for paths in sets:
        for order in (paths, paths[::-1]):
            folders = [RunFolder(Path(path)) for path in order]
            for folder in folders:
                folder.path.mkdir(parents=True, exist_ok=True)
                (folder.path / "hparams.yaml").write_text("task: dino\n")
            write_comparison(folders, "runs")
    found = list((tmp_path / "runs" / "comparisons").iterdir())
    assert len(found) == len(sets)
    assert sum(place.name.startswith("a-vs-b-") for place in found) == 4
