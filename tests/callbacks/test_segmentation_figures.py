"""Predictions, bars, confusion and feature colours show what they say."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from callbacks.class_iou import ClassIoU
from callbacks.class_iou import draw as draw_bars
from callbacks.confusion_figure import ConfusionFigure, Counts
from callbacks.confusion_matrix import ConfusionMatrix
from callbacks.confusion_matrix import draw as draw_confusion
from callbacks.feature_maps import principal_colours
from callbacks.segmentation_predictions import Judged, SegmentationPredictions, draw
from callbacks.step_outputs import CropOutputs, EvaluationOutputs, step_result
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
    figure = draw([judged(), judged()], NAMES, "title", palette(NAMES))
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
    figure = draw_views({"labels": judged().prediction[None]}, "title", own)
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


@pytest.mark.parametrize("draw_some", [partial(draw_bars, colours=palette(ODD)), draw_confusion])
def test_names_of_any_kind_are_text_in_bars_and_confusion(draw_some):
    figure = draw_some(torch.eye(5, dtype=torch.int64), ODD, "$here$")
    figures.picture(figure)
    assert r"\$here\$" in figure._suptitle.get_text()  # type: ignore[attr-defined]
    width = figure.axes[0].get_position().width
    figures.close(figure)
    assert width > 0.3  # names leave room for what is drawn


def test_names_of_any_kind_are_in_the_legend():
    labels = torch.arange(5, dtype=torch.uint8)[None]
    shown = Judged(torch.zeros(3, 2, 5, dtype=torch.uint8), labels, labels)
    figure = draw([shown], ODD, "title", palette(ODD))
    figures.picture(figure)
    assert len(figure.legends[0].get_texts()) == 5 + 3
    figures.close(figure)


def test_bars_are_iou_and_absent_classes_are_left_out():
    confusion = torch.tensor([[6, 2, 0], [1, 1, 0], [0, 0, 0]])
    figure = draw_bars(confusion, NAMES, "here", palette(NAMES))
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


def test_the_first_class_is_the_uppermost_bar():
    many = tuple(f"class {number}" for number in range(100))
    for names in (NAMES, many):
        figure = draw_bars(torch.eye(len(names), dtype=torch.int64), names, "here", palette(names))
        for axis in figure.axes:
            assert axis.yaxis_inverted()
        figures.close(figure)


def test_a_chart_of_classes_has_all_that_occur_the_best_first():
    confusion = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 6, 0], [1, 0, 0, 0]])
    chart = ClassIoU(1).chart(Counts(confusion, ("a", "b", "c", "d"), "here", palette(())))
    assert chart.rows == [("c", 1.0), ("a", pytest.approx(1 / 3)), ("b", 0.0), ("d", 0.0)]
    confusion[0, 1] = 0
    chart = ClassIoU(1).chart(Counts(confusion, ("a", "b", "c", "d"), "here", palette(())))
    assert [name for name, _ in chart.rows] == ["c", "a", "d"]


def test_of_many_classes_the_most_frequent_are_shown_among_themselves():
    names = tuple(f"class {number}" for number in range(43))
    rare = (0, 7, 42)
    confusion = torch.arange(43**2).reshape(43, 43) + 10_000
    confusion[list(rare)] = 1
    confusion[:, 0] = 10**6  # what is rare may be predicted often
    confusion[0, 0] = 1
    confusion[7, 0] = confusion[42, 0] = 1
    chart = ConfusionMatrix(1).chart(Counts(confusion, names, "here", palette(())))
    kept = [number for number in range(43) if number not in rare]
    assert chart.rows == [
        (names[truth], names[taken], int(confusion[truth, taken]))
        for truth in kept
        for taken in kept
    ]


def test_pictures_of_the_test_name_the_chosen_checkpoint_and_not_the_last_step():
    seen = []

    class Kept(ConfusionFigure):
        kind = "kept"

        def picture(self, counts):
            seen.append(counts.where)
            return draw_bars(counts.confusion, counts.names, counts.where, counts.colours)

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
@pytest.mark.parametrize(
    ("wanted", "expected"), [(4, (0, 5, 10, 15)), (3, (0, 8, 15)), (1, (0,)), (2, (0, 15))]
)
def test_the_shown_images_are_spread_over_the_share_of_a_process(processes, wanted, expected):
    callback = SegmentationPredictions(every_n_epochs=1, num_images=wanted)
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
    assert shown == [processes * image for image in expected]


def test_training_crops_are_those_of_the_first_batch_at_the_resolution_of_their_labels():
    callback = SegmentationPredictions(every_n_epochs=1, num_images=2)
    agent = SimpleNamespace(classes=NAMES, confusion={})
    logits = torch.zeros(3, 3, 2, 2)
    logits[:, 0], logits[:, 2, :, 1] = 4.5, 9.0  # a dog on the right
    shown = step_result(torch.zeros(()), CropOutputs(logits))
    labels = torch.zeros(3, 8, 8, dtype=torch.uint8)
    labels[0, :, 4:], labels[0, 0] = 2, VOID
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    batch = SegmentationBatch(images, labels, torch.tensor([[8, 8, 8, 8]] * 3), torch.arange(3), ())
    sent = []

    class Masks:
        def log_masks(self, kind, images, masks, names, captions, step):
            sent.append((kind, images, masks, names, captions))

    trainer: Any = Fixed()
    trainer.testing, trainer.loggers = False, [Masks()]
    for number in range(2):
        callback.on_train_batch_end(trainer, agent, shown, batch, number)  # type: ignore[arg-type]
    callback.on_train_epoch_end(trainer, agent)  # type: ignore[arg-type]
    ((kind, pictures, masks, names, captions),) = sent
    assert kind == "segmentation_predictions/train/overlay"
    assert [picture.shape for picture in pictures] == [(8, 8, 3)] * 2
    assert names == dict(enumerate(NAMES))
    assert captions == ["row 1: 100% of the pixels right", "row 2: 50% of the pixels right"]
    found = {name: np.stack(each) for name, each in masks.items()}
    np.testing.assert_array_equal(found["ground truth"], labels[:2])
    guess = np.broadcast_to(2 * (np.arange(8) > 3), (2, 8, 8))
    np.testing.assert_array_equal(found["prediction"], guess)


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
        figure = draw_views(views, "title", palette(names or ()))
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
