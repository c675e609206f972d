"""What `auto` chooses is accepted by whatever checks it, for every task and backbone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.backbone import build_backbone
from config import names
from config.convert import update
from config.hparams import Hparams
from config.length import resolve_for_data, steps_per_epoch
from config.resolve import patch_multiple, resolve
from config.validation import check, without_ineffective


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
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr("os.cpu_count", lambda: 128)
    hparams = resolve(update(Hparams(), {"trainer": {"devices": devices}}, "x"))
    assert resolve_for_data(hparams, 1000, on_gpu).data.num_workers == expected
    given_number = resolve(update(Hparams(), {"data": {"num_workers": 0}}, "x"))
    assert resolve_for_data(given_number, 1000, on_gpu).data.num_workers == 0
