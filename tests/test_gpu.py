"""What only a GPU can show: `pytest -m gpu`."""

import math
import threading
from copy import deepcopy
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from agents.tuning import GPU_SHARE
from callbacks.effective_receptive_field import receptive_fields
from callbacks.throughput import Throughput
from main import main
from models.heads.projector import projector
from models.losses.barlow_twins import barlow_twins_loss, cross_correlation, summarise
from models.losses.lejepa import sigreg
from models.measures.knn import knn_scores
from models.measures.segmentation import metrics
from models.memory.chunking import forward_in_chunks
from tests.conftest import summary, weights
from tests.models.test_chunking import SIZES, assert_close, vit
from utils.device import VOLTA
from utils.memory import free_unused
from utils.metrics_file import read_metrics
from utils.optim import clip_each
from utils.rng import rng_preserved

HAS_CUDA = torch.cuda.is_available()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_CUDA, reason="needs a CUDA device"),
]
GPU = torch.device("cuda")
HALF = pytest.mark.parametrize(
    "precision",
    [
        "16-mixed",
        pytest.param(
            "bf16-mixed",
            marks=pytest.mark.skipif(
                HAS_CUDA and not torch.cuda.is_bf16_supported(including_emulation=False),
                reason="this card has no bfloat16",
            ),
        ),
    ],
)


@pytest.fixture(autouse=True)
def no_wandb(monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)  # which wins over the runs' own settings


def gradients(chunked: bool, drop_path: float, autocast: bool = False) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    backbone = vit(drop_path=drop_path).to(GPU)
    head = projector(24, 10, 3).to(GPU)
    model = torch.nn.ModuleDict({"backbone": backbone, "head": head})
    model.to(torch.float32 if autocast else torch.float64)
    views = torch.randint(0, 256, (2, sum(SIZES), 3, 16, 16), dtype=torch.uint8)  # on the host
    torch.manual_seed(1)
    with torch.autocast("cuda", torch.float16, enabled=autocast):
        z = []
        for view in views:
            if chunked:
                chunks = view.split(SIZES)
                pooled = forward_in_chunks(backbone, lambda x: backbone(x).pooled, chunks, GPU)
            else:
                pooled = torch.cat([backbone(x.to(GPU)).pooled for x in view.split(SIZES)])
            z.append(head(pooled))
        loss = barlow_twins_loss(cross_correlation(*z), 0.0051)
    (loss * 16).backward()  # the largest gradient is 132 times that, and float16 ends at 65,504
    return {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("drop_path", [0.0, 0.4])
def test_chunks_from_the_host_have_the_gradient_of_the_loop(drop_path):
    assert_close(gradients(True, drop_path), gradients(False, drop_path))


def test_the_same_in_float16():
    assert_close(gradients(True, 0.4, True), gradients(False, 0.4, True), tolerance=1e-2)


@HALF
def test_a_segmentation_trains_judges_and_is_looked_into(train, precision):
    code, folder = train(
        "gpu",
        task="segmentation",
        trainer__accelerator="gpu",
        trainer__precision=precision,
        data__val_fraction=0.3,
        callbacks__effective_receptive_field__enabled="true",
        callbacks__feature_maps__enabled="true",
        callbacks__segmentation_predictions__enabled="true",
    )
    assert code == 0
    assert summary(folder)["test/miou"] > 0


def test_receptive_fields_are_those_of_the_cpu():
    torch.manual_seed(0)
    # In double precision: convolutions of float32 are TF32's on a GPU.
    backbone, images = vit().eval().double(), torch.rand(2, 3, 16, 16, dtype=torch.float64)
    names = list(backbone.layer_maps(images))
    fields = receptive_fields(backbone.layer_maps, names, images)
    on_gpu = receptive_fields(backbone.to(GPU).layer_maps, names, images.to(GPU))
    for name in names:
        torch.testing.assert_close(on_gpu[name], fields[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("task", ["dino", "dino_twins"])
@HALF
def test_dino_trains_one_view_at_a_time(train, task, precision):
    shared = {
        "task": task,
        "trainer__accelerator": "gpu",
        "trainer__precision": precision,
        "trainer__max_epochs": 1,
        "dino__clip_grad": 0,
        "dino__head_batch_norm": "false",  # which judges all views together
    }
    _, whole = train("whole", **shared)
    code, pieces = train("pieces", trainer__chunk_size=4, **shared)
    assert code == 0
    one, other = (summary(folder)["val/loss"] for folder in (whole, pieces))
    assert other == pytest.approx(one, rel=0.02)


@HALF
def test_fusions_read_kept_features_on_the_gpu(train, precision):
    code, folder = train(
        "fused",
        *("--segmentation.fusion", "fusion1", "fusion2", "fusion3"),
        task="segmentation",
        backbone__freeze="true",
        data__views="fixed",
        segmentation__attention_loss=0.2,
        trainer__accelerator="gpu",
        trainer__precision=precision,
    )
    assert code == 0
    assert 0 < summary(folder)["fusion/fusion2/alpha"] < 1


def test_float16_gradients_are_divided_before_they_are_clipped_and_measured(train):
    typical = {}
    for precision in ("32-true", "16-mixed"):
        code, folder = train(
            precision,
            task="dino",
            trainer__accelerator="gpu",
            trainer__precision=precision,
            trainer__gradient_clip=1,
            trainer__max_epochs=10,
            callbacks__health__every_n_steps=1,
        )
        assert code == 0
        rows = read_metrics(folder / "metrics.csv").values()
        norms = [row["train/grad_norm"] for row in rows if "train/grad_norm" in row]
        typical[precision] = median(filter(math.isfinite, norms))
    # The scale is 65,536; a step that overflows, whose norm is no number, halves it.
    assert typical["16-mixed"] < 20 * typical["32-true"]


def test_a_gpu_that_is_busy_is_no_loader_that_is_slow():
    throughput, matrix = Throughput(), torch.rand(4096, 4096, device=GPU)
    trainer: Any = SimpleNamespace(world_size=1, is_last_batch=False)
    module: Any = SimpleNamespace(device=GPU)
    throughput.on_train_epoch_start(trainer, module)
    for index in range(30):
        throughput.on_train_batch_start(trainer, module, range(8), index)
        for _ in range(20):
            matrix @ matrix
        throughput.on_train_batch_end(trainer, module, None, range(8), index)
        torch.cuda.synchronize()  # as a progress bar does that shows the loss
    assert throughput.data_wait_share < 0.3


def test_deterministic_counts_are_small_and_those_of_the_cpu():
    torch.manual_seed(0)
    predicted, truth = torch.randint(0, 171, (2, 1, 300, 400))
    expected = metrics(171)
    expected.update(predicted, truth)
    measured = metrics(171).to(GPU)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        torch.cuda.reset_peak_memory_stats()
        measured.update(predicted.to(GPU), truth.to(GPU))
        peak = torch.cuda.max_memory_allocated()
    finally:
        torch.use_deterministic_algorithms(False)
    assert peak < 2**30
    assert torch.equal(measured.compute()["confusion"].cpu(), expected.compute()["confusion"])


def test_random_states_of_the_gpu_are_put_back():
    torch.manual_seed(0)
    expected = torch.rand(3, device=GPU)
    torch.manual_seed(0)
    with rng_preserved(GPU):
        torch.rand(3, device=GPU)
    assert torch.equal(torch.rand(3, device=GPU), expected)


def test_a_run_on_the_cpu_takes_no_memory_of_the_gpu(train):
    free_unused(GPU)
    before = torch.cuda.memory_reserved()
    code, folder = train("cpu", trainer__accelerator="cpu")
    assert code == 0
    assert torch.cuda.memory_reserved() <= before
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    states = next(v for k, v in last["callbacks"].items() if k.startswith("RandomState"))
    assert states["0"].keys() == {"cpu"}


def test_a_tuned_chunk_leaves_a_reserve(train):
    code, folder = train("tuned", trainer__accelerator="gpu", trainer__tune_batch_size="true")
    assert code == 0
    total = torch.cuda.get_device_properties(GPU).total_memory / 2**20
    assert summary(folder)["peak_memory_mb"] < GPU_SHARE * total


def test_processes_that_load_into_pinned_memory_end_with_the_run(train):
    code, _ = train("workers", trainer__accelerator="gpu", data__num_workers=2)  # looks for them
    assert code == 0
    assert not any("pin_memory" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize(("first", "second"), [("gpu", "cpu"), ("cpu", "gpu")])
def test_a_run_goes_on_on_another_device(train, first, second):
    code, folder = train(
        trainer__accelerator=first,
        trainer__precision="32-true",
        backbone__drop_path=0.4,
        trainer__max_epochs=1,
    )
    assert code == 0
    steps = summary(folder)["steps"]
    words = ["--run.resume", folder.name, "--run.dir", str(folder.parent)]
    words += ["--trainer.max_epochs", "2", "--trainer.accelerator", second]
    assert main(words) == 0
    assert summary(folder)["steps"] == 2 * steps
    assert all(value.isfinite().all() for value in weights(folder).values())


def test_gradients_are_clipped_one_by_one_as_on_the_cpu():
    torch.manual_seed(0)
    on_cpu = vit()
    for index, parameter in enumerate(on_cpu.parameters()):
        parameter.grad = torch.randn_like(parameter) * 10.0 ** (index % 5 - 2)
    on_gpu = deepcopy(on_cpu).to(GPU)
    for one, other in zip(on_gpu.parameters(), on_cpu.parameters(), strict=True):
        one.grad = None if other.grad is None else other.grad.to(GPU)
    for network in (on_cpu, on_gpu):
        clip_each(network.parameters(), 1.0)
    for one, other in zip(on_gpu.parameters(), on_cpu.parameters(), strict=True):
        torch.testing.assert_close(one.grad.cpu(), other.grad, rtol=1e-5, atol=1e-8)


def test_neighbours_beside_half_precision_are_those_of_float64():
    bank = torch.randn(5000, 384, generator=torch.Generator().manual_seed(0)) + 30  # all alike
    classes = torch.arange(5000) % 50
    precisely = F.normalize(bank.double(), dim=1)
    nearest = (precisely[:500] @ precisely.T).topk(2, dim=1).indices[:, 1]  # after itself
    torch.set_float32_matmul_precision("high")
    try:
        votes = knn_scores(bank[:500].to(GPU), bank.to(GPU), classes.to(GPU), 50, 2, 1e3).cpu()
    finally:
        torch.set_float32_matmul_precision("highest")
    voted = votes[torch.arange(500), classes[nearest]]
    assert (voted > 0).float().mean() > 0.98  # in TF32 0.75


def test_embeddings_are_judged_without_waiting_for_the_gpu():
    matrix = torch.rand(64, 64, device=GPU)
    torch.cuda.set_sync_debug_mode("error")
    try:
        summarise(matrix)
        barlow_twins_loss(matrix, 0.1)
        sigreg(matrix, matrix, 17, 5.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backbone", ["resnet18", "botnet50"])
def test_convolutional_networks_train_channels_last(train, backbone):
    architecture = dict.fromkeys(("patch_size", "depth", "embed_dim"), ...)
    code, folder = train(
        backbone,
        trainer__accelerator="gpu",
        backbone__name=backbone,
        **{f"backbone__{name}": value for name, value in architecture.items()},
    )
    assert code == 0
    stem = weights(folder)["backbone.net.conv1.weight"]
    tensor_cores = torch.cuda.get_device_capability() >= VOLTA
    assert stem.is_contiguous(memory_format=torch.channels_last) is tensor_cores


# The slowest, at the end.
@pytest.mark.skipif(
    HAS_CUDA and torch.cuda.get_device_capability() < VOLTA, reason="nothing compiles for this card"
)
@pytest.mark.parametrize("tuner", ["tune_batch_size", "tune_lr"])
@pytest.mark.parametrize("task", ["barlow_twins", "dino"])
def test_tuners_compile_what_they_fit(train, task, tuner):
    options = {"trainer__accelerator": "gpu", "trainer__compile": "true"}
    code, folder = train("tuned", task=task, **options, **{f"trainer__{tuner}": "true"})
    assert code == 0
    assert summary(folder)["train/loss"] > 0
