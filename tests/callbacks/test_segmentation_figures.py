"""Predictions, bars, confusion and feature colours show what they say."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from callbacks.class_iou import draw as draw_bars
from callbacks.confusion_figure import ConfusionFigure
from callbacks.confusion_matrix import draw as draw_confusion
from callbacks.feature_maps import principal_colours
from callbacks.segmentation_predictions import Judged, SegmentationPredictions, draw
from callbacks.step_outputs import EvaluationOutputs, step_result
from callbacks.views import draw as draw_views
from datamodules.masked_images import SegmentationBatch
from tests.conftest import assert_same, weights
from utils import figures
from utils.logging import Chart
from utils.palette import VOID, label_image, overlay, palette

NAMES = ("background", "cat", "dog")
ALL_ON = {
    f"callbacks__{name}__{leaf}": value
    for name in (
        "attention_maps",
        "attention_quality",
        "views",
        "learning_curves",
        "effective_receptive_field",
        "feature_maps",
        "segmentation_predictions",
        "class_iou",
        "confusion_matrix",
    )
    for leaf, value in (("enabled", "true"), ("every_n_epochs", 1))
}


def judged() -> Judged:
    labels = torch.tensor([[0, 0, 1], [1, VOID, 1]], dtype=torch.uint8)
    prediction = torch.tensor([[0, 2, 1], [1, 2, 1]], dtype=torch.uint8)
    return Judged(torch.zeros(3, 4, 6, dtype=torch.uint8), labels, prediction)


def test_errors_are_magenta_and_void_is_grey():
    figure = draw([judged(), judged()], NAMES, "title")
    error = np.asarray(figure.axes[3].images[0].get_array())
    assert error[0, 1].tolist() == [255, 0, 255]
    assert error[1, 1].tolist() == [190, 190, 190]
    assert error[0, 0].tolist() == [255, 255, 255]
    assert figure.axes[3].get_xlabel() == "80% of the pixels right"
    truth = np.asarray(figure.axes[1].images[0].get_array())
    assert truth[1, 1].tolist() == [190, 190, 190]
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert legend == {"background", "cat", "dog", "void: not judged", "wrong", "right"}
    figures.close(figure)


def test_labels_have_the_colours_of_their_data_set():
    own = palette(NAMES)
    own[:3] = [[9, 9, 9], [0, 255, 0], [0, 0, 255]]
    figure = draw([judged()], NAMES, "title", own)
    assert np.asarray(figure.axes[1].images[0].get_array())[0].tolist() == own[[0, 0, 1]].tolist()
    legend = figure.legends[0].get_patches()[1]
    assert legend.get_facecolor()[:3] == (0, 1, 0)
    figures.close(figure)
    figure = draw_bars(torch.eye(3, dtype=torch.int64), NAMES, "here", own)
    assert figure.axes[0].patches[1].get_facecolor()[:3] == (0, 1, 0)
    figures.close(figure)
    figure = draw_views({"labels": judged().prediction[None]}, "title", NAMES, own)
    assert np.asarray(figure.axes[0].images[0].get_array())[0].tolist() == own[[0, 2, 1]].tolist()
    figures.close(figure)


def test_errors_have_no_colour_of_a_class():
    own = palette(NAMES)
    own[:3] = [[250, 0, 250], [255, 90, 0], [0, 0, 0]]
    figure = draw([judged()], NAMES, "title", own)
    wrong = np.asarray(figure.axes[3].images[0].get_array())[0, 1].astype(int)
    shown = np.vstack([own[:3], own[VOID], [255, 255, 255]]).astype(int)
    assert np.abs(shown - wrong).sum(1).min() > 200
    legend = {text.get_text(): patch for text, patch in _legend(figure)}
    assert legend["wrong"].get_facecolor()[:3] == pytest.approx(wrong / 255)
    figures.close(figure)


def _legend(figure):
    legend = figure.legends[0]
    return zip(legend.get_texts(), legend.get_patches(), strict=True)


ODD = ("$a_b$ 50 $", "_cat", "x" * 200, "😀 <b>", "")


@pytest.mark.parametrize("draw_some", [draw_bars, draw_confusion])
def test_names_of_any_kind_are_text_in_bars_and_confusion(draw_some):
    figure = draw_some(torch.eye(5, dtype=torch.int64), ODD, "$here$")
    figures.picture(figure)
    assert r"\$here\$" in figure._suptitle.get_text()  # type: ignore[attr-defined]
    width = figure.axes[0].get_position().width
    figures.close(figure)
    assert width > 0.3  # names leave room for what is drawn


def test_names_of_any_kind_are_in_the_legend():
    labels = torch.arange(5, dtype=torch.uint8)[None]
    figure = draw([Judged(torch.zeros(3, 2, 5, dtype=torch.uint8), labels, labels)], ODD, "title")
    figures.picture(figure)
    assert len(figure.legends[0].get_texts()) == 5 + 3
    figures.close(figure)


def test_bars_are_iou_and_absent_classes_are_left_out():
    confusion = torch.tensor([[6, 2, 0], [1, 1, 0], [0, 0, 0]])
    figure = draw_bars(confusion, NAMES, "here")
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([6 / 9, 1 / 4, 0])
    assert "mean 0.458 over 2 classes" in figure._suptitle.get_text()  # type: ignore[attr-defined]
    assert any("left out" in text.get_text() for text in figure.axes[0].texts)
    colour = np.array(figure.axes[0].patches[1].get_facecolor()[:3])
    assert colour == pytest.approx(np.array([128, 0, 0]) / 255)
    # The line of the mean ends before a number.
    (line,) = figure.axes[0].get_lines()
    numbers = figure.axes[0].texts
    assert all(text.get_bbox_patch() and text.zorder > line.zorder for text in numbers)
    figures.close(figure)


def test_pictures_of_the_test_name_the_chosen_checkpoint_and_not_the_last_step():
    seen = []

    class Kept(ConfusionFigure):
        kind = "kept"

        def picture(self, counts):
            seen.append(counts.where)
            return draw_bars(counts.confusion, counts.names, counts.where)

        def chart(self, counts):
            return Chart("", (), ())

    agent = SimpleNamespace(classes=("a", "b"), confusion={"test": torch.eye(2)})
    Kept(1).on_test_end(SimpleNamespace(testing=True, global_step=40, loggers=[]), agent)
    assert seen == ["test images, chosen checkpoint"]


def test_confusion_is_shared_out_by_row():
    figure = draw_confusion(torch.tensor([[6, 2, 0], [1, 1, 0], [0, 0, 0]]), NAMES, "here")
    shown = figure.axes[0].collections[0].get_array().reshape(3, 3)  # type: ignore[union-attr]
    assert shown[0].tolist() == pytest.approx([75, 25, 0])
    assert figure.axes[0].collections[0].get_clim() == (0, 100)
    assert figure.axes[1].get_ylabel().startswith("%")
    assert np.ma.getmaskarray(shown)[2].all()
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list(NAMES)
    figures.close(figure)


def test_colours_are_principal_components():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 3))[0]
    scores = torch.randn(2, 5, 6, 3) * torch.tensor([9.0, 3.0, 1.0])
    maps = (scores @ basis.T + 4).movedim(-1, 1)
    colours, explained = principal_colours(maps)
    assert colours.shape == (2, 5, 6, 3)
    assert sum(explained) == pytest.approx(1)
    for channel in range(3):
        pair = torch.stack([colours[..., channel].flatten(), scores[..., channel].flatten()])
        assert abs(torch.corrcoef(pair)[0, 1]) > 0.9
    again, _ = principal_colours(maps)
    assert torch.equal(colours, again)
    # The same direction is the same colour in every image.
    alone, _ = principal_colours(maps[:1])
    assert not torch.allclose(alone, colours[:1])


def test_colours_of_few_or_equal_features():
    colours, explained = principal_colours(torch.ones(2, 8, 3, 3))
    assert (colours == 0.5).all()
    assert principal_colours(torch.rand(1, 2, 3, 3))[0].shape == (1, 3, 3, 3)
    assert len(explained) == 3


class Fixed:
    """Stands in for a trainer in its only epoch."""

    max_epochs, max_steps, should_stop, global_step, current_epoch = 1, -1, False, 0, 0
    num_val_batches = (4,)
    validating, check_val_every_n_epoch = False, 1


@pytest.mark.parametrize("processes", [1, 3])
def test_the_shown_images_are_spread_over_the_share_of_a_process(processes):
    callback = SegmentationPredictions(every_n_epochs=1, num_images=4)
    for number in range(4):
        count = 5 if number < 3 else 1
        batch = SegmentationBatch(
            torch.zeros(count, 3, 4, 4, dtype=torch.uint8),
            torch.zeros(count, 4, 4, dtype=torch.uint8),
            torch.tensor([[4, 4, 4, 4]] * count),
            processes * torch.arange(5 * number, 5 * number + count),  # every third of the set
            (),
        )
        predictions = [torch.full((4, 4), i, dtype=torch.uint8) for i in batch.indices.tolist()]
        outputs = step_result(torch.zeros(()), EvaluationOutputs(predictions))
        callback.on_validation_batch_end(Fixed(), None, outputs, batch, number)  # type: ignore[arg-type]
    shown = [int(each.prediction[0, 0]) for each in callback.kept["val"]]
    assert shown == [0, 5 * processes, 10 * processes, 15 * processes]


def test_label_images_and_overlays():
    labels = judged().labels.numpy()
    picture = label_image(labels, palette(NAMES))
    assert picture.mode == "P"
    assert np.array_equal(np.array(picture), labels)
    assert np.allclose(palette(NAMES)[labels][0, 2] / 255, to_rgb("#800000"), atol=0.01)
    from PIL import Image

    painted = np.array(
        overlay(Image.new("RGB", (3, 2), (100, 100, 100)), labels, palette(NAMES), 0.5)
    )
    assert painted[0, 0].tolist() == [100, 100, 100]
    assert painted[0, 2].tolist() == [114, 50, 50]


def test_classes_without_a_background_all_have_a_colour():
    from PIL import Image

    colours = palette(("person", "bicycle", "car"))
    assert colours[0].tolist() == [128, 0, 0]
    assert colours[VOID].tolist() == [190, 190, 190]
    assert (
        len({tuple(colour) for colour in palette(tuple(map(str, range(171))))[:171].tolist()})
        == 171
    )
    labels = np.zeros((1, 2), np.uint8)
    painted = np.array(overlay(Image.new("RGB", (2, 1), (100, 100, 100)), labels, colours, 0.5))
    assert painted[0, 0].tolist() == [114, 50, 50]


def test_views_show_labels_in_the_colours_of_their_classes():
    views = {
        "image": torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        "labels": torch.zeros(2, 4, 4, dtype=torch.uint8),
    }
    for names, colour in ((("background", "cat"), [0, 0, 0]), (("cat", "dog"), [128, 0, 0])):
        figure = draw_views(views, "title", names)
        shown = np.asarray(figure.axes[0].images[2].get_array())
        assert shown[0, 0].tolist() == colour
        figures.close(figure)


def test_a_run_with_every_picture_ends_with_the_same_weights(train):
    shared = {"task": "segmentation", "backbone__drop_path": 0.3, "data__val_fraction": 0.3}
    assert train("plain", **shared)[0] == 0
    code, folder = train("pictures", **shared, **ALL_ON, callbacks__report__enabled="true")
    assert code == 0
    assert_same(weights(folder), weights(folder.parent / "plain"))
    kinds = {
        file.parent.relative_to(folder / "figures").as_posix()
        for file in folder.rglob("figures/**/*.png")
    }
    judged_splits = {
        f"{kind}/{split}" for kind in ("class_iou", "confusion_matrix") for split in ("val", "test")
    }
    assert kinds == judged_splits | {
        *(f"segmentation_predictions/{split}" for split in ("train", "val", "test")),
        *(f"attention_maps/{split}/block-02" for split in ("train", "val")),
        *(f"attention_quality/{split}" for split in ("train", "test")),
        "effective_receptive_field",
        "feature_maps",
        "learning_curves",
        "views/train",
    }
    assert (folder / "report.html").stat().st_size < 20_000_000
