"""Curves say what was measured, where, and no more than that."""

import numpy as np

from callbacks.learning_curves import draw
from callbacks.online_probe import KNN
from utils import figures

STEPS = range(0, 400, 10)


def rows(**curves):
    """Rows of metrics.csv: `train__x` is a function of the step, measured every 10 steps."""
    return {
        step: {name.replace("__", "/"): float(of(step)) for name, of in curves.items()}
        for step in STEPS
    }


def panels(content):
    figure = draw(content)
    found = {axis.get_title(): axis for axis in figure.axes if axis.get_visible()}
    title = figure._suptitle.get_text()  # type: ignore[attr-defined]
    figures.close(figure)
    return found, title


def test_panels_come_in_the_order_they_are_read():
    rising = {
        name: lambda step: step
        for name in ("train__lr", "train__data_wait_share", "val__miou", "train__sigreg")
    }
    rising |= {"train__accuracy": rising["val__miou"], "val__accuracy": rising["val__miou"]}
    found, _ = panels(rows(**rising, val__loss=lambda s: s + 1, train__loss=lambda s: s + 2))
    assert list(found) == ["loss", "miou", "accuracy", "sigreg", "data wait share", "lr"]


def test_what_never_changes_is_said_not_drawn():
    content = rows(
        train__weight_decay=lambda _: 0.05, train__loss=lambda _: 1, val__accuracy=lambda _: 0.1
    )
    found, title = panels(content)
    # That nothing is learnt is news.
    assert set(found) == {"loss", "accuracy"}
    assert "weight decay 0.05" in title
    assert set(panels(rows(train__weight_decay=lambda _: 0.05))[0]) == {"weight decay"}


def test_shares_have_the_whole_of_their_range_unless_they_leave_it():
    noise = np.random.default_rng(0).normal(size=400) * 1e-3
    content = rows(
        val__knn_accuracy=lambda s: 0.4 + noise[s],
        train__diagonal_mean=lambda s: noise[s] - 0.2,
        train__mass_lift=lambda s: noise[s] / 100,
    )
    found, _ = panels(content)
    low, high = found["knn accuracy"].get_ylim()
    assert low < 0 < 1 < high < 1.1
    low, high = found["mass lift"].get_ylim()
    assert -0.1 < low < 0
    assert 1 < high < 1.1
    low, high = found["diagonal mean"].get_ylim()
    assert -0.3 < low < -0.2
    assert high > 1


def test_noise_is_not_magnified_and_change_is_not_hidden():
    noise = np.random.default_rng(0).normal(size=400) * 1e-2
    content = rows(train__sigreg=lambda s: 7 + noise[s], train__prediction=lambda s: 7 - s / 100)
    found, _ = panels(content)
    low, high = found["sigreg"].get_ylim()
    assert high - low > 0.6
    low, high = found["prediction"].get_ylim()
    assert high - low < 5


def test_a_loss_is_drawn_beside_what_it_is_read_against():
    floor = {"train__noise_floor": lambda s: 200 + s, "train__lower_bound": lambda _: -1}
    losses = {"train__loss": lambda s: 900 - s, "val__loss": lambda s: 950 - s}
    found, _ = panels(rows(**losses, **floor))
    lines = {line.get_label(): line for line in found["loss"].get_lines()}
    assert set(lines) == {"train", "val", "noise floor"}  # a bound below 0 bounds no loss
    assert set(lines["noise floor"].get_ydata()) == {200 + STEPS[-1]}  # of the last batch
    assert {name: line.get_linestyle() for name, line in lines.items()} == {
        "train": "-",
        "val": "--",
        "noise floor": ":",
    }
    assert found["loss"].get_yscale() == "linear"
    assert list(found) == ["loss"]
    for lowest, kind in ((1, "log"), (0, "linear"), (-1, "linear")):
        found, _ = panels(rows(train__loss=lambda s, low=lowest: low + s))
        assert found["loss"].get_yscale() == kind


def test_points_stand_where_something_was_measured():
    content = rows(train__loss=lambda s: s)
    for step in range(400):
        content.setdefault(step, {})["train/sigreg"] = float(step)
    content[30]["val/loss"] = 3.0
    found, _ = panels(content)
    marked = {
        (title, line.get_label()): (line.get_marker(), len(line.get_xdata()))
        for title, axis in found.items()
        for line in axis.get_lines()
    }
    assert marked == {
        ("loss", "train"): ("o", 40),
        ("loss", "val"): ("o", 1),
        ("sigreg", "train"): ("", 400),
    }


def test_a_long_curve_is_thinned_from_its_first_to_its_last_point_and_a_sparse_one_is_not():
    content: dict[int, dict[str, float]] = {
        step: {"train/loss": 1 + step % 7} for step in range(10_001)
    }
    for step in range(3, 10_000, 17):
        content[step]["train/gradient_cosine"] = step / 10_000
    found, _ = panels(content)
    steps = found["loss"].get_lines()[0].get_xdata()
    assert (steps[0], steps[-1]) == (0, 10_000)
    assert len(steps) <= 1001
    assert list(found["gradient cosine"].get_lines()[0].get_xdata()) == list(range(3, 10_000, 17))


def test_the_last_picture_has_what_the_last_epoch_measured(train, monkeypatch):
    drawn = []

    def recorded(content):
        drawn.append({step: set(row) for step, row in content.items()})
        return draw(content)

    monkeypatch.setattr("callbacks.learning_curves.draw", recorded)
    code, folder = train(
        "run",
        callbacks__learning_curves__enabled="true",
        callbacks__learning_curves__every_n_epochs=1,
        callbacks__online_probe__enabled="true",
        callbacks__online_probe__every_n_epochs=1,
    )
    assert code == 0
    pictures = sorted(file.name for file in (folder / "figures" / "learning_curves").glob("*.png"))
    assert pictures == ["step-0000003.png", "step-0000006.png"]
    assert len(drawn) == 2
    assert KNN in drawn[-1][5]  # of step 6, counted from 0
