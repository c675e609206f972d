"""What `auto` chooses is accepted by whatever checks it, for every task and backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.backbone import build_backbone
from config import names
from config.effective import without_ineffective
from config.hparams import Hparams
from config.length import resolve_for_data, steps_per_epoch
from config.resolve import patch_multiple, resolve
from config.rules import get_leaf
from config.settings_tree import update
from config.types import Cadence, StepCadence
from config.validation import check
from utils.nested import nested


def chosen(task: str, backbone: str, patch: int | None = None, **more: dict) -> Hparams:
    settings = {"task": task, "backbone": {"name": backbone, "patch_size": patch}, **more}
    return check(update(Hparams(), settings, "x"))


BACKBONES = [*(name for name in names.BACKBONES if name != names.TIMM), "timm/test_vit"]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_sides_are_multiples_of_what_the_network_needs(backbone):
    hparams = resolve(chosen("dino", backbone))
    with torch.device("meta"):
        network = build_backbone(hparams, loaded=False)
    if backbone in names.BACKBONES:
        assert patch_multiple(hparams) == network.patch_multiple
    else:  # what suits most of timm's
        assert patch_multiple(hparams) % network.patch_multiple == 0


@st.composite
def requests(draw: st.DrawFn) -> Hparams:
    task = draw(st.sampled_from([*names.TASKS]))
    backbone = draw(st.sampled_from(BACKBONES))
    patch = draw(st.sampled_from([None, 4, 8, 10, 14, 16, 32]))
    hparams = chosen(
        task,
        backbone,
        patch=patch if backbone in names.VITS else None,
        data={"name": draw(st.sampled_from([*names.DATASETS]))},
        optim={"name": draw(st.sampled_from([*names.OPTIMIZERS]))},
        trainer={"devices": draw(st.sampled_from([1, 2, 3, 8]))},
    )
    if task == "segmentation":
        hparams.segmentation.loss_stride = draw(st.sampled_from([1, 2, 4, 8]))
    if task in names.PRETRAINING:
        hparams.trainer.chunk_size = draw(st.sampled_from(["auto", None, 2, 64, 1000]))
    if draw(st.booleans()):
        multiple = patch_multiple(hparams) * hparams.segmentation.loss_stride
        hparams.data.image_size = multiple * draw(st.integers(-(-16 // multiple), 520 // multiple))
    return check(hparams)


@pytest.mark.parametrize("examples", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_what_is_chosen_is_accepted(examples):
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(hparams=requests(), images=st.integers(16, 2_000_000), on_gpu=st.booleans())
    def one(hparams: Hparams, images: int, on_gpu: bool) -> None:
        found = resolve_for_data(resolve(hparams), images, on_gpu)
        check(without_ineffective(found))
        sides = [found.data.image_size]
        if found.task in ("dino", "dino_twins"):
            sides.append(found.dino.local_crop_size)
        assert [side for side in sides if side % patch_multiple(hparams)] == []

    one()


@pytest.mark.parametrize(("image", "local"), [(128, 64), (224, 96), (64, 32), (32, 32)])
def test_local_crops_fit_a_swin(image, local):
    hparams = resolve(chosen("dino", "swin_tiny", data={"image_size": image}))
    assert hparams.dino.local_crop_size == local


@pytest.mark.parametrize("backbone", ["vit_demo", "resnet18", "vit_tiny"])
@pytest.mark.parametrize("optimizer", names.OPTIMIZERS)
@pytest.mark.parametrize("task", names.PRETRAINING)
def test_shapes_are_pretrained_on_for_40_epochs(task, optimizer, backbone):
    hparams = chosen(task, backbone, optim={"name": optimizer}, data={"name": "shapes"})
    for on_gpu in (True, False):
        found = resolve_for_data(resolve(hparams), 1024, on_gpu)
        assert (found.trainer.max_epochs, found.data.batch_size) == (40, 128)


@pytest.mark.parametrize(
    ("images", "steps", "often", "seldom"), [(1024, 8, 10, 20), (128 * 25, 25, 5, 10)]
)
def test_of_short_epochs_more_pass_between_readouts(images, steps, often, seldom):
    hparams = chosen("barlow_twins", "vit_demo", data={"name": "shapes"})
    found = resolve_for_data(resolve(hparams), images, on_gpu=False)
    assert steps_per_epoch(found, images) == steps
    of = found.callbacks
    for callback in (of.attention_maps, of.online_probe, of.dense_knn):
        assert callback.every_n_epochs == often
    for callback in (of.embeddings, of.attention_quality, of.effective_receptive_field):
        assert callback.every_n_epochs == seldom


@pytest.mark.parametrize(("epochs", "every"), [(3, 20), (20, 32), (40, 64), (200, 100)])
def test_of_short_runs_gradients_are_compared_five_times_but_not_every_few_steps(epochs, every):
    data, trainer = {"name": "shapes"}, {"max_epochs": epochs}
    hparams = chosen("barlow_twins", "vit_demo", data=data, trainer=trainer)
    found = resolve_for_data(resolve(hparams), 1024, on_gpu=False)  # 8 steps an epoch
    assert found.callbacks.gradient_agreement.every_n_steps == every


def test_cadences_are_whole_epochs_and_steps():
    assert [Cadence(5, 20, 80).every(epochs, 10**6) for epochs in (3, 100, 101)] == [5, 5, 6]
    assert [Cadence(1, 1000, 80).every(10, steps) for steps in (100, 99)] == [8, 9]
    assert [StepCadence(100, 5).every(steps) for steps in (3, 50, 1000)] == [1, 10, 100]


@pytest.mark.parametrize("task", ["dino", "dino_twins"])
def test_dino_has_a_recipe_of_its_own_for_shapes_and_elsewhere_the_paper_s(task):
    here = resolve(chosen(task, "vit_demo", data={"name": "shapes"})).dino
    assert (here.hidden_dim, here.head_batch_norm, here.local_crops_number) == (512, True, 4)
    assert (here.local_crop_size, here.local_crops_scale) == (24, [0.15, 0.5])
    there = resolve(chosen(task, "vit_small", data={"name": "image_folder"})).dino
    assert (there.hidden_dim, there.head_batch_norm, there.local_crops_number) == (2048, False, 8)
    assert (there.local_crop_size, there.local_crops_scale) == (96, [0.05, 0.4])
    told = {"head_batch_norm": False, "local_crops_number": 2, "local_crops_scale": [0.1, 0.2]}
    found = resolve(chosen(task, "vit_demo", data={"name": "shapes"}, dino=told)).dino
    assert {name: getattr(found, name) for name in told} == told


PLAIN = {"data": "image_folder", "backbone": "vit_small"}
RESNET, PROBE = {**PLAIN, "backbone": "resnet18"}, {"data": "cifar10", "backbone": "resnet18"}
LENGTH = ("data.batch_size", "trainer.max_epochs", "optim.lr", "optim.weight_decay")
CHOSEN: list[tuple[str, dict[str, Any], int, bool, Any]] = [
    # Task, settings, images, whether on a GPU, and batch, epochs, rate and decay; or what is named.
    ("barlow_twins", PLAIN, 50_000, True, (256, 103, 1e-3, 0.05)),
    ("barlow_twins", PLAIN, 50_000, False, (256, 11, 1e-3, 0.05)),
    ("barlow_twins", PLAIN, 600_000, True, (256, 10, 1e-3, 0.05)),
    ("barlow_twins", PLAIN, 600_000, False, (256, 1, 1e-3, 0.05)),
    ("barlow_twins", PLAIN, 100, True, (64, 400, 5e-4, 0.05)),
    ("barlow_twins", {"data": "shapes", "backbone": "vit_demo"}, 1024, True, (128, 40, 2e-3, 0.05)),
    ("lejepa", PLAIN, 10_000, True, (256, 400, 2e-3, 0.05)),
    ("dino", PLAIN, 10_000, True, (256, 400, 5e-4, 0.04)),
    ("dino", {**PLAIN, "optim.name": "sgd"}, 10_000, True, (256, 400, 0.03, 1e-4)),
    ("dino_twins", PLAIN, 400, True, (128, 400, 5e-4 / 2**0.5, 0.04)),
    ("dino_twins", {**PLAIN, "dino_twins.term": "sigreg"}, 400, True, (64, 400, 2.5e-4, 0.04)),
    ("segmentation", PLAIN, 1464, True, (16, 88, 2.5e-4, 0.05)),
    ("segmentation", {**PLAIN, "backbone.weights": "dino"}, 1464, True, (16, 88, 1e-4, 0.05)),
    ("segmentation", {**PLAIN, "backbone.freeze": True}, 1464, True, (16, 33, 5e-3, 0.05)),
    ("segmentation", {**PLAIN, "backbone.freeze": True}, 50, True, (4, 250, 2.5e-3, 0.05)),
    ("linear_probe", PROBE, 50_000, True, (256, 100, 1e-3, 0.0)),
    ("linear_probe", {**PROBE, "optim.name": "lars"}, 50_000, False, (256, 100, 1.0, 0.0)),
    ("dino", PLAIN, 512, True, {"optim.final_weight_decay": 0.4}),
    ("dino", {**PLAIN, "optim.name": "sgd"}, 512, True, {"optim.final_weight_decay": 1e-4}),
    ("dino", PLAIN, 512, True, {"dino.global_crops_scale": [0.4, 1.0]}),
    ("dino", PLAIN, 512, True, {"dino.warmup_teacher_temp": 0.02}),
    ("dino", PLAIN, 1_281_167, True, {"dino.warmup_teacher_temp": 0.04}),
    *(
        ("dino", {**PLAIN, **one_crop}, 512, True, {"dino.global_crops_scale": [0.14, 1.0]})
        for one_crop in ({"dino.multi_crop": False}, {"dino.local_crops_number": 0})
    ),
    ("dino_twins", PLAIN, 512, True, {"dino_twins.beta": 2.5e-3}),
    ("dino_twins", {**PLAIN, "dino_twins.term": "sigreg"}, 512, True, {"dino_twins.beta": 0.05}),
    (
        "barlow_twins",
        {**PLAIN, "barlow_twins.projector_dim": 2048},
        512,
        True,
        {
            "barlow_twins.hidden_dim": 2048,
            "barlow_twins.lambd": 0.001275,
            "barlow_twins.crop_scale": [0.08, 1.0],
        },
    ),
    (
        "dino",
        PLAIN,
        10_000,
        True,
        {
            "callbacks.attention_maps.every_n_epochs": 20,
            "callbacks.embeddings.every_n_epochs": 40,
            "callbacks.gradient_agreement.every_n_steps": 100,
        },
    ),
]


def with_dots(task: str, given: dict[str, Any]) -> Hparams:
    """Settings by their paths; `data` and `backbone` are names."""
    named = {path if "." in path else f"{path}.name": value for path, value in given.items()}
    return check(update(Hparams(), nested({"task": task, **named}), "x"))


@pytest.mark.parametrize(("task", "given", "images", "on_gpu", "expected"), CHOSEN)
def test_auto_is_these_numbers(task, given, images, on_gpu, expected):
    found = resolve_for_data(resolve(with_dots(task, given)), images, on_gpu)
    named = expected if isinstance(expected, dict) else zip(LENGTH, expected, strict=True)
    for path, value in dict(named).items():
        assert get_leaf(found, path) == (value if isinstance(value, list) else pytest.approx(value))


@pytest.mark.parametrize(("limit", "steps"), [(None, 20), (5, 3), (1000, 20)])
def test_an_epoch_ends_with_a_step_of_fewer_batches(limit, steps):
    given = {**PLAIN, "trainer.limit_train_batches": limit, "trainer.accumulate": 2}
    found = resolve_for_data(resolve(with_dots("barlow_twins", given)), 10_000, on_gpu=True)
    assert steps_per_epoch(found, 10_000) == steps  # of 39 batches of 256


@pytest.mark.parametrize(
    ("changed", "stem", "blur"),
    [
        ({"data.image_size": 32}, "cifar_maxpool", False),
        ({"data.image_size": 64}, "cifar_maxpool", True),
        ({"data.image_size": 65}, "imagenet", True),
        ({"data.image_size": 32, "backbone.output_stride": 16}, "imagenet", False),
        ({"data.image_size": 32, "backbone.weights": "pretrained"}, "imagenet", False),
    ],
)
def test_small_images_have_a_stem_of_their_own_and_are_not_blurred(changed, stem, blur):
    found = resolve(with_dots("barlow_twins", {**RESNET, **changed}))
    assert (found.backbone.stem, found.data.blur) == (stem, blur)


@pytest.mark.parametrize(
    ("task", "data", "backbone", "patch", "side"),
    [
        ("dino", "image_folder", "vit_small", 14, 224),
        ("dino", "cifar10", "vit_small", None, 128),  # eight patches a side
        ("dino", "cifar10", "vit_demo", 10, 40),
        ("dino", "shapes", "swin_tiny", None, 64),
        ("segmentation", "shapes", "vit_demo", 10, 60),  # of 10 and loss_stride 4
    ],
)
def test_the_side_of_images_fits_data_and_network(task, data, backbone, patch, side):
    more = {"segmentation": {"loss_stride": 4}} if task == "segmentation" else {}
    hparams = chosen(task, backbone, patch=patch, data={"name": data}, **more)
    assert resolve(hparams).data.image_size == side


@pytest.mark.parametrize(
    ("cores", "devices", "on_gpu", "expected"),
    [
        (16, 1, True, 16),
        (16, 2, True, 8),
        (1, 2, True, 1),
        (16, 1, False, 8),
        (4, 1, False, 3),
        (1, 1, False, 1),
    ],
)
def test_loaders_take_the_cores_that_the_process_may_use(
    monkeypatch, cores, devices, on_gpu, expected
):
    monkeypatch.setattr("utils.cores.QUOTA", Path("nowhere"))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr("os.cpu_count", lambda: 128)
    hparams = resolve(update(Hparams(), {"trainer": {"devices": devices}}, "x"))
    assert resolve_for_data(hparams, 1000, on_gpu).data.num_workers == expected
    given_number = resolve(update(Hparams(), {"data": {"num_workers": 0}}, "x"))
    assert resolve_for_data(given_number, 1000, on_gpu).data.num_workers == 0
