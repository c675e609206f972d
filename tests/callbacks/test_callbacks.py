"""Pictures show what they say, and looking changes nothing."""

from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import torch
from pytorch_lightning.plugins.precision import MixedPrecision, Precision

from callbacks.attention_maps import draw, paint_masks
from callbacks.cross_correlation import CrossCorrelation
from callbacks.cross_correlation import draw as draw_matrix
from callbacks.early_stopping import early_stopping
from callbacks.embeddings import draw as draw_points
from callbacks.epochs import due
from callbacks.inspection import held_out_examples, inspecting
from callbacks.learning_curves import draw as draw_curves
from callbacks.online_probe import KNN
from callbacks.step_outputs import PretrainingOutputs, step_result
from callbacks.views import draw as draw_views
from models.attention import mass_mask
from tests.conftest import assert_same, callback_of, summary, weights
from utils import figures
from utils.metrics_file import read_metrics
from utils.palette import palette

ALL_ON = {
    f"callbacks__{name}__{leaf}": value
    for name in (
        "attention_maps",
        "cross_correlation",
        "views",
        "learning_curves",
        "effective_receptive_field",
        "feature_maps",
    )
    for leaf, value in (("enabled", "true"), ("every_n_epochs", 1))
}


def test_mass_mask_is_the_smallest_set():
    maps = torch.tensor([[0.4, 0.3], [0.2, 0.1]])
    for mass, expected in ((0.4, 1), (0.41, 2), (0.6, 2), (0.75, 3), (0.99, 4)):
        assert mass_mask(maps, mass).sum() == expected
    assert mass_mask(maps, 0.6).tolist() == [[True, True], [False, False]]
    # Attention beyond the patches (on CLS) does not count: rows are normalised first.
    assert torch.equal(mass_mask(maps * 0.1, 0.6), mass_mask(maps, 0.6))


def test_overlay_paints_heads_in_fixed_colours():
    image = np.full((4, 4, 3), 100, np.uint8)
    masks = np.zeros((2, 4, 4), bool)
    masks[0, :2], masks[1, 3] = True, True
    painted = paint_masks(image, masks)
    for row, head in ((0, 0), (3, 1)):
        expected = 50 + 0.5 * 255 * np.array(figures.HEADS[head])
        assert np.abs(painted[row, 0] - expected).max() <= 1
    assert (painted[2, 0] == 35).all()  # outside every mask: darkened


def test_colours_of_the_matrix_are_absolute():
    red, cyan = figures.CORRELATION(1.0), figures.CORRELATION(0.5)
    assert red[0] > 0.8
    assert max(red[1:3]) < 0.15
    assert cyan[0] < 0.2
    assert cyan[2] > 0.9
    axes = draw_matrix(torch.eye(4) * 0.5, 16, "here").axes
    assert axes[0].images[0].get_clim() == (-1, 1)


def test_titles_name_samples_and_step():
    figure = draw_matrix(0.3 + 0.7 * torch.eye(4), 17, "val images, step 3")
    text = figure._suptitle.get_text()  # type: ignore[attr-defined]
    assert "N = 17" in text
    assert "val images, step 3" in text
    assert "mean diagonal 1.000" in text
    assert "off-diagonal RMS 0.300" in text
    assert "at this N: 0.250" in text
    # C_ij = sum over b of z1_bi z2_bj: what lies below each other is of the first view.
    assert "view 1" in figure.axes[0].get_ylabel()
    assert "view 2" in figure.axes[0].get_xlabel()


@pytest.mark.parametrize("count", [1, 3])
def test_figures_of_any_number_of_images(count):
    images = torch.zeros(count, 3, 16, 16, dtype=torch.uint8)
    maps = torch.rand(count, 3, 2, 2)
    for figure in (
        draw(images, maps, 0.6, "t"),
        draw_views({"view 1": images, "view 2": images}, "t", palette(())),
    ):
        assert figure.axes
        figures.close(figure)
    assert draw_curves({0: {"train/loss": 1.0}, 1: {"train/loss": 0.5, "val/loss": 0.7}}).axes


def test_a_row_an_image_holds_maps_in_their_own_range_and_outlines_of_masks():
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    maps = torch.full((4, 3, 4, 4), 0.05)
    maps[:, 0, 1, 2] = 9.0  # the mask is this patch alone
    figure = draw(images, maps, 0.6, "t")
    assert figure.get_size_inches()[1] * figure.dpi < 800  # a screen
    axis, words = figure.axes[0], [text.get_text() for text in figure.axes[0].texts]
    pictures = np.array(axis.images).reshape(4, 5)
    outlines = np.array(axis.collections).reshape(4, 3)
    for row, (shown, outline) in enumerate(zip(pictures[:, 2], outlines[:, 0], strict=True)):
        assert shown.get_clim() == pytest.approx((0.05, 9.0))
        assert np.asarray(shown.get_array()).shape == (4, 4)
        assert len(outline.get_segments()) == 4
        corners = np.array(outline.get_segments()).reshape(-1, 2)
        left, right, bottom, top = shown.get_extent()
        assert corners.min(0).tolist() == pytest.approx([left + 2 / 4, top + 1 / 4])
        assert corners.max(0).tolist() == pytest.approx([left + 3 / 4, top + 2 / 4])
        assert (right - left, bottom - top) == pytest.approx((1, 1))
        assert row == 0 or top > pictures[row - 1, 2].get_extent()[2]  # below the one before
    assert words.count("peak 14.8 x uniform") == 4
    figures.close(figure)


class Fixed:
    """Stands in for a trainer at some epoch."""

    max_epochs, max_steps, should_stop, sanity_checking, global_step = 9, -1, False, False, 0
    current_epoch = 0
    validating, check_val_every_n_epoch = False, 1


def test_matrix_uses_the_last_training_and_first_validation_samples(monkeypatch):
    callback = CrossCorrelation(every_n_epochs=1, num_samples=10)
    drawn = []
    monkeypatch.setattr(
        "callbacks.cross_correlation.draw", lambda c, n, where: drawn.append((c, n, where))
    )
    monkeypatch.setattr("callbacks.cross_correlation.log_figure", lambda *_: None)
    z = torch.randn(24, 4)
    for i in range(6):
        part = z[4 * i : 4 * i + 4]
        shown = step_result(part, PretrainingOutputs(part, (part, part)))
        callback.on_train_batch_end(Fixed(), None, shown, None, i)  # type: ignore[arg-type]
        callback.on_validation_batch_end(Fixed(), None, shown, None, i)  # type: ignore[arg-type]
    callback.on_train_epoch_end(Fixed(), None)  # type: ignore[arg-type]
    callback.on_validation_end(Fixed(), None)  # type: ignore[arg-type]
    from models.losses.barlow_twins import cross_correlation

    (train, n, _), (val, m, _) = drawn
    assert n == m == 10
    assert torch.equal(train, cross_correlation(z[-10:], z[-10:]))
    assert torch.equal(val, cross_correlation(z[:10], z[:10]))


def test_every_matrix_is_of_its_own_validation(monkeypatch):
    from models.losses.barlow_twins import cross_correlation

    drawn: list[torch.Tensor] = []
    monkeypatch.setattr(
        "callbacks.cross_correlation.draw", lambda matrix, n, where: drawn.append(matrix)
    )
    monkeypatch.setattr("callbacks.cross_correlation.log_figure", lambda *_: None)
    callback, trainer = CrossCorrelation(every_n_epochs=1, num_samples=8), Fixed()
    z = torch.randn(3, 8, 4)
    for number, part in enumerate(z):
        shown = step_result(part, PretrainingOutputs(part, (part, part)))
        trainer.sanity_checking = number == 0
        callback.on_validation_batch_end(trainer, None, shown, None, 0)  # type: ignore[arg-type]
        if number:
            callback.on_validation_end(trainer, None)  # type: ignore[arg-type]
    assert [torch.equal(m, cross_correlation(p, p)) for m, p in zip(drawn, z[1:], strict=True)] == [
        True,
        True,
    ]


class InSteps(Fixed):
    """Stands in for a trainer whose last epoch, of ten steps, is the third."""

    max_epochs, max_steps, num_training_batches, accumulate_grad_batches = -1, 25, 20, 2


def test_what_is_drawn_of_epochs_and_of_rarer_validations():
    def epochs(trainer: type[Fixed], every: int, at: range) -> list[int]:
        found = []
        for epoch in at:
            made = trainer()
            made.current_epoch = epoch
            found += [epoch] * due(made, every)  # type: ignore[arg-type]
        return found

    class Validation(Fixed):
        max_epochs, validating, check_val_every_n_epoch = 24, True, 4

    class Uneven(Validation):
        max_epochs, check_val_every_n_epoch = 10, 3

    assert epochs(Fixed, 3, range(9)) == [0, 3, 6, 8]
    assert epochs(Validation, 10, range(3, 24, 4)) == [3, 11, 23]
    assert epochs(Validation, 2, range(3, 24, 4)) == [3, 7, 11, 15, 19, 23]
    assert epochs(Uneven, 9, range(2, 10, 3)) == [2, 8]  # after which there is no other
    # Known before the last step, as pictures are collected from the first on.
    assert epochs(InSteps, 9, range(3)) == [0, 2]


def test_validations_that_are_rarer_than_epochs_are_drawn(train):
    code, folder = train(
        "rare",
        callbacks__cross_correlation__enabled="true",
        callbacks__cross_correlation__every_n_epochs=3,
        callbacks__cross_correlation__num_samples=16,
        trainer__val_every_n_epochs=2,
        trainer__max_epochs=...,
        trainer__max_steps=11,
        trainer__limit_train_batches=2,
    )
    drawn = {
        split: [file.stem for file in sorted(folder.glob(f"figures/cross_correlation/{split}/*g"))]
        for split in ("train", "val")
    }
    assert code == 0
    assert drawn["train"] == ["step-0000002", "step-0000008", "step-0000011"]
    assert drawn["val"] == ["step-0000004", "step-0000008"]


def test_a_run_that_stops_early_is_looked_at_to_its_end(train):
    code, folder = train(
        "early",
        trainer__max_epochs=30,
        trainer__limit_train_batches=1,
        optim__lr=0.0,
        callbacks__early_stopping__enabled="true",
        callbacks__early_stopping__patience=1,
        callbacks__online_probe__enabled="true",
        callbacks__online_probe__every_n_epochs=100,
        callbacks__cross_correlation__enabled="true",
        callbacks__cross_correlation__every_n_epochs=100,
        callbacks__cross_correlation__num_samples=8,
    )
    assert code == 0
    end = summary(folder)["steps"]
    assert 1 < end < 30
    for split in ("train", "val"):
        drawn = [file.stem for file in folder.glob(f"figures/cross_correlation/{split}/*g")]
        assert sorted(drawn) == ["step-0000001", f"step-{end:07d}"]
    rows = read_metrics(folder / "metrics.csv")
    assert KNN in rows[max(rows)]


@pytest.mark.parametrize(("held_out", "split"), [(0, "train"), (3, "val")])
def test_examples_are_held_out_where_some_are_and_as_large_as_asked_for(held_out, split):
    from models.backbones.vit import vit_tiny

    backbone = vit_tiny(image_size=32, patch_size=8, depth=1)
    data = SimpleNamespace(val_files=["x"] * held_out, image_size=36)
    data.examples = lambda *asked: asked
    trainer = SimpleNamespace(datamodule=data)
    for enlarged, side in ((1, 32), (2, 72)):
        found = held_out_examples(trainer, backbone, 5, enlarged)  # type: ignore[arg-type]
        assert found == ((split, 5, side), split)


def test_looking_leaves_no_trace(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    net = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.BatchNorm1d(3))
    net[1].eval()
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with inspecting(net):
        assert not torch.backends.cudnn.benchmark
        assert not net[0].training
        net(torch.rand(4, 3))
        assert not torch.is_grad_enabled()
    assert torch.backends.cudnn.benchmark
    assert torch.equal(torch.rand(2), expected)
    assert net[0].training
    assert not net[1].training
    assert net[1].running_mean.abs().sum() == 0  # type: ignore[union-attr, operator]


def test_the_network_is_seen_in_the_precision_it_trains_in():
    net, images = torch.nn.Linear(3, 2), torch.rand(4, 3)
    with inspecting(net, MixedPrecision("bf16-mixed", "cpu")):
        assert net(images).dtype == torch.bfloat16
    with inspecting(net, Precision()):
        assert net(images).dtype == torch.float32


def test_a_run_with_every_picture_ends_with_the_same_weights(train, capsys):
    assert train("plain", backbone__drop_path=0.3)[0] == 0
    code, folder = train(
        "pictures",
        "--callbacks.attention_maps.blocks",
        "0",
        "1",
        backbone__drop_path=0.3,
        callbacks__attention_maps__image_size=48,
        callbacks__cross_correlation__num_samples=8,
        **ALL_ON,
    )
    assert code == 0
    assert_same(weights(folder), weights(folder.parent / "plain"))
    kinds = {
        file.parent.relative_to(folder / "figures").as_posix()
        for file in folder.rglob("figures/**/*.png")
    }
    maps = {f"attention_maps/{s}/block-0{b}" for s in ("train", "val") for b in (1, 2)}
    matrices = {f"cross_correlation/{split}" for split in ("train", "val")}
    others = {"views/train", "learning_curves", "effective_receptive_field", "feature_maps"}
    assert kinds == maps | matrices | others
    taken = [v for name, v in summary(folder).items() if name.startswith("readout_seconds/")]
    assert taken == sorted(taken, reverse=True)
    picture = matplotlib.image.imread(
        folder / "figures" / "cross_correlation" / "val" / "step-0000006.png"
    )
    assert picture.shape[0] > 300


def test_a_network_without_attention_is_told_once(train, capsys):
    code, folder = train(
        backbone__name="timm/test_resnet",
        backbone__patch_size=...,
        callbacks__attention_maps__enabled="true",
        trainer__max_epochs=1,
    )
    assert code == 0
    assert not (folder / "figures" / "attention_maps").exists()
    assert capsys.readouterr().err.count("has no attention; nothing drawn") == 1


def test_attention_of_impossible_blocks_or_sizes_stops_before_training(train, capsys):
    on = {"callbacks__attention_maps__enabled": "true"}
    blocks = "--callbacks.attention_maps.blocks: block [7] of a network with 2 blocks: use 0 … 1"
    for leaf, value, message in (("blocks", 7, blocks), ("image_size", 40, "multiple of")):
        code, folder = train(leaf, **on, **{f"callbacks__attention_maps__{leaf}": value})
        assert code == 2
        assert message in capsys.readouterr().err.replace("\n", " ")
        assert not (folder / "metrics.csv").read_text().count("\n") > 1


def test_cls_attention_of_a_mean_pooled_network_is_commented():
    from models.backbones.vit import vit_tiny

    backbone = vit_tiny(image_size=16, patch_size=8, depth=1, pool="mean")
    said: list[str] = []
    callback = callback_of("attention_maps", queries="cls")
    callback.say = said.append
    assert callback.queries_for(backbone) == "cls"
    assert "never trained" in said[0]
    assert callback_of("attention_maps").queries_for(backbone) == "mean"


def test_early_stopping_watches_what_chooses_the_best():
    stopping = early_stopping("val/miou", "max", 3)
    assert (stopping.monitor, stopping.mode, stopping.patience) == ("val/miou", "max", 3)


@pytest.mark.parametrize(("classes", "named"), [(10, True), (200, False)])
def test_classes_of_points_are_named_where_there_is_room(classes, named):
    names = tuple(f"class {number}" for number in range(classes))
    figure = draw_points(torch.randn(400, 4), torch.arange(400) % classes, names, "here")
    figure.canvas.draw()
    legends = [legend.get_window_extent().height for legend in figure.legends]
    assert len(legends) == named
    assert all(each <= figure.bbox.height for each in legends)
    assert (f"{classes} classes" in figure.get_suptitle()) is not named
    figures.close(figure)


@pytest.mark.filterwarnings("error")  # of what scikit-learn divides by, before it crashes
@pytest.mark.parametrize(("apart", "panels"), [(0.0, 1), (1e-38, 2), (1e25, 2)])
def test_points_of_a_network_that_has_collapsed_are_drawn(apart, panels):
    pytest.importorskip("sklearn")
    features = torch.zeros(20, 4, dtype=torch.double)
    features[3, 2] = apart
    figure = draw_points(features, None, (), "here")
    assert len(figure.axes) == panels
    figures.close(figure)
